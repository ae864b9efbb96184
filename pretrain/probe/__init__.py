"""Probes: what the features are worth while they are trained, without a trace in the training."""
