"""Learning rate as a pure function of the step, so that nothing about it needs to be saved."""

import math

from voxscale.engine.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of one step.

    Args:
        config: Peak rate, shape and share of warm-up.
        step: 0-based step.
        steps: Steps of the whole run.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "halving":
        return config.lr * 0.5 ** int(5 * done)
    return config.lr * (1 - done) ** 0.9
