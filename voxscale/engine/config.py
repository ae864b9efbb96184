"""Configs of the engine's parts; a stage nests them in its own config."""

from typing import Literal

from voxscale.config import config, require

Precision = Literal["bf16", "fp32"]


@config
class EngineConfig:
    """How a step is computed.

    Attributes:
        zero_stage: DeepSpeed ZeRO stage: 0 none, 1 optimizer states, 2 + gradients, 3 + weights sharded over ranks.
        precision: bf16 with fp32 master weights, or fp32.
        clip: Largest global gradient norm; larger ones are scaled down.
        accumulate: Micro-batches per step.
        channels_last: Memory layout of activations (weights are views into ZeRO's flat buffers and keep theirs).
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Precision = "bf16"
    clip: float = 12.0
    accumulate: int = 1
    channels_last: bool = True

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.clip > 0, "engine.clip", "above 0", self.clip)
        require(self.accumulate >= 1, "engine.accumulate", "at least 1", self.accumulate)
        # DeepSpeed 0.19.8 gives updates of the wrong size here (docs/design.md, engine).
        ok = not (self.precision == "bf16" and self.zero_stage == 0)
        require(ok, "engine.zero_stage", "1, 2 or 3 with engine.precision bf16", self.zero_stage, (1, 2, 3))


@config
class OptimConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
        kind: `adamw`, or `sgd` (Nesterov, the optimizer of nnU-Net and STU-Net).
        lr: Peak learning rate.
        weight_decay: On weights; norms and biases are not decayed.
        momentum: Of `sgd`.
        betas: Of `adamw`.
        schedule: `cosine` to 0, or `poly` with exponent 0.9 to 0.
        warmup: Share of all steps in which the rate rises linearly.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-5
    momentum: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "poly"] = "cosine"
    warmup: float = 0.05

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.lr > 0, "optim.lr", "above 0", self.lr)
        require(self.weight_decay >= 0, "optim.weight_decay", "at least 0", self.weight_decay)
        require(0 <= self.momentum < 1, "optim.momentum", "in [0, 1)", self.momentum)
        require(0 <= self.warmup < 1, "optim.warmup", "in [0, 1)", self.warmup)


@config
class LoopConfig:
    """Length of a run and what it leaves behind.

    Attributes:
        steps: Optimizer steps.
        batch: Samples per step over all ranks and accumulated micro-batches.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints; the last step always saves one.
        keep: Newest checkpoints kept, at least 2 so that a damaged newest one has a predecessor.
        keep_every: Checkpoints of steps that are a multiple of this are kept for good; 0 keeps none so.
    """

    steps: int = 1000
    batch: int = 4
    log_every: int = 10
    checkpoint_every: int = 200
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        for name in ("steps", "batch", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"loop.{name}", "at least 1", getattr(self, name))
        require(self.keep >= 2, "loop.keep", "at least 2", self.keep)
        require(self.keep_every >= 0, "loop.keep_every", "at least 0", self.keep_every)


@config
class TrackerConfig:
    """Where metrics go besides `metrics.jsonl`, which is always written.

    Attributes:
        wandb: Mirror to W&B: online where a key is set, else offline.
        project: W&B project.
    """

    wandb: bool = True
    project: str = "voxscale"


def micro_batch(batch: int, accumulate: int, world: int) -> int:
    """Samples per rank and micro-batch.

    Raises:
        ConfigError: If ranks and accumulation do not divide the global batch.
    """
    parts = accumulate * world
    require(batch % parts == 0, "loop.batch", f"a multiple of {parts} (accumulate {accumulate} x {world} ranks)", batch)
    return batch // parts
