"""The training engine: one loop over DeepSpeed, checkpoints that survive a crash, a meter, a tracker."""
