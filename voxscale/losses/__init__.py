"""Loss functions of supervised segmentation, each a pure function of logits and labels."""
