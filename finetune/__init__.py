"""Fine-tuning: what pretraining buys on a labelled task, against a twin that starts from scratch."""
