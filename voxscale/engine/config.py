"""Configs of the engine's parts; a stage nests them in its own config."""

from typing import Literal

from voxscale.config import config, require

Precision = Literal["bf16", "fp32"]
Offload = Literal["none", "optimizer", "all"]
Switch = Literal["auto", "on", "off"]


@config
class EngineConfig:
    """How a step is computed.

    Attributes:
        zero_stage: DeepSpeed ZeRO stage: 0 none, 1 optimizer states, 2 + gradients, 3 + weights sharded over ranks.
        precision: bf16 with fp32 master weights, or fp32.
        clip: Largest global gradient norm; larger ones are scaled down.
        accumulate: Micro-batches per step. Stages 0 and 1 reduce gradients once per step, 2 and 3 with each
            micro-batch, because they keep no whole gradients.
        offload: What lives in host memory: optimizer states and fp32 weights (from stage 1), or at stage 3 all weights.
        channels_last: Memory layout of activations. `auto` is what was measured to be faster for the family of
            backbones (`voxscale/engine/layout.py`).
        weights_last: Whether the weights of convolutions lie channels-last as well, so that none is copied in every
            pass (`voxscale/models/turned.py`); a run's checkpoints load with and without it. `auto` is off, as for
            no family results were both faster and equal (`docs/results/layouts.md`); GPUs were not measured.
        compile: Compile each block of the model with torch.compile.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Precision = "bf16"
    clip: float = 12.0
    accumulate: int = 1
    offload: Offload = "none"
    channels_last: Switch = "auto"
    weights_last: Switch = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.clip > 0, "engine.clip", "above 0", self.clip)
        require(self.accumulate >= 1, "engine.accumulate", "at least 1", self.accumulate)
        # DeepSpeed 0.19.8 gives updates of the wrong size here (docs/design.md, engine).
        ok = not (self.precision == "bf16" and self.zero_stage == 0)
        require(ok, "engine.zero_stage", "1, 2 or 3 with engine.precision bf16", self.zero_stage, (1, 2, 3))
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        stages = tuple(range(least, 4))
        ok = self.zero_stage >= least
        require(ok, "engine.zero_stage", f"at least {least} to offload {self.offload}", self.zero_stage, stages)
        ok = not (self.weights_last == "on" and self.channels_last == "off")
        require(ok, "engine.weights_last", "off where engine.channels_last is", self.weights_last)
        # Under ZeRO-3 a hook of every layer gathers its weights: each would cut the compiled graph.
        ok = not (self.compile and self.zero_stage == 3)
        require(ok, "engine.compile", "off at engine.zero_stage 3", self.compile)


@config
class OptimConfig:
    """Optimizer and learning-rate schedule.

    Attributes:
        kind: `adamw`, or `sgd` (Nesterov, the optimizer of nnU-Net and STU-Net).
        lr: Peak learning rate.
        weight_decay: On weights; norms and biases are not decayed.
        layer_decay: Each layer's rate is this times that of the layer above it (Clark et al. 2020, ELECTRA,
            appendix A); 1 gives all the same rate. The top layer below the heads has `lr`.
        head_lr: Rate of the heads as a multiple of `lr`; in pretraining the objectives' heads.
        momentum: Of `sgd`.
        betas: Of `adamw`.
        schedule: `cosine` to 0, `poly` with exponent 0.9 to 0, or `halving` four times, in equal intervals.
        warmup: Share of all steps in which the rate rises linearly.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-5
    layer_decay: float = 1.0
    head_lr: float = 1.0
    momentum: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "poly", "halving"] = "cosine"
    warmup: float = 0.05

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.lr > 0, "optim.lr", "above 0", self.lr)
        require(self.weight_decay >= 0, "optim.weight_decay", "at least 0", self.weight_decay)
        require(0 < self.layer_decay <= 1, "optim.layer_decay", "in (0, 1]", self.layer_decay)
        require(self.head_lr > 0, "optim.head_lr", "above 0", self.head_lr)
        require(0 <= self.momentum < 1, "optim.momentum", "in [0, 1)", self.momentum)
        require(0 <= self.warmup < 1, "optim.warmup", "in [0, 1)", self.warmup)


@config
class EmaConfig:
    """A teacher whose weights are an exponential moving average of the trained ones.

    Attributes:
        start: Momentum at the first step.
        end: Momentum at the last step; between them it rises as half a cosine (Grill et al. 2020, BYOL, section 3.2).
        memory: Share of the run that the average looks back at the start, at most: the first momentum is no more than
            `1 - 1 / (memory * steps)`, so that in a short run the teacher is not the untrained network to the end.
            Runs of more than `1 / (memory * (1 - start))` steps are not changed by it, nor is any by 0.
    """

    start: float = 0.996
    end: float = 1.0
    memory: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(0 <= self.start <= 1, "ema.start", "in [0, 1]", self.start)
        require(self.start <= self.end <= 1, "ema.end", f"in [{self.start}, 1]", self.end)
        require(0 <= self.memory <= 1, "ema.memory", "in [0, 1]", self.memory)


@config
class GuardConfig:
    """Which steps are too bad to be taken, and what follows.

    Attributes:
        sigma: A loss or gradient norm this many robust standard deviations above the median of the last good
            steps is exploding, and its step is skipped; 0 skips only what is not finite.
        window: Good steps that median and deviation are taken from; before half as many, nothing counts as exploding.
        in_a_row: Skipped steps in a row after which the run goes back to the weights of the last good checkpoint;
            if that happens again before another good checkpoint, the run stops.
    """

    sigma: float = 10.0
    window: int = 128
    in_a_row: int = 5

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.sigma >= 0, "loop.guard.sigma", "at least 0", self.sigma)
        require(self.window >= 2, "loop.guard.window", "at least 2", self.window)
        require(self.in_a_row >= 1, "loop.guard.in_a_row", "at least 1", self.in_a_row)


@config
class WatchConfig:
    """When a rank counts as lost.

    Attributes:
        patience_s: Seconds that a rank may spend in one phase of a step (data, forward, backward, optimizer,
            checkpoint, probe), of the start (meeting the others, inputs, weights, engine, state) or of what follows
            training (test, score, pictures) without entering a collective, or doing a window or a case there, before it
            counts as hung; outside of training a minute or this, if longer, is what others wait for it to come.
        silence_s: Seconds without any sign of life from a rank's process before it counts as stopped or dead.
    """

    patience_s: float = 900.0
    silence_s: float = 60.0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.patience_s > 0, "loop.watch.patience_s", "positive", self.patience_s)
        require(self.silence_s > 0, "loop.watch.silence_s", "positive", self.silence_s)


@config
class ProfileConfig:
    """A window in which torch's profiler looks on; its traces land in `RUN/profile`.

    Attributes:
        start: First step of the window.
        steps: Steps in it; 0 is no window.
    """

    start: int = 10
    steps: int = 0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.start >= 0, "loop.profile.start", "at least 0", self.start)
        require(self.steps >= 0, "loop.profile.steps", "at least 0", self.steps)


@config
class LoopConfig:
    """Length of a run and what it leaves behind.

    Attributes:
        steps: Optimizer steps.
        batch: Samples per step over all ranks and accumulated micro-batches.
        log_every: Steps between two lines of metrics.
        checkpoint_every: Steps between two checkpoints; the last step always saves one.
        keep: Newest checkpoints kept, at least 2 so that a damaged newest one has a predecessor; one that a signal had
            saved within a row of bad steps is kept beside them while it is the newest.
        keep_every: Checkpoints of steps that are a multiple of this are kept for good; 0 keeps none so.
        guard: Bad steps.
        watch: Lost ranks.
        profile: Profiler window.
        peak_tflops: What the device can do in this precision, for MFU; 0 looks it up.
    """

    steps: int = 1000
    batch: int = 4
    log_every: int = 10
    checkpoint_every: int = 200
    keep: int = 2
    keep_every: int = 0
    guard: GuardConfig = GuardConfig()
    watch: WatchConfig = WatchConfig()
    profile: ProfileConfig = ProfileConfig()
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.peak_tflops >= 0, "loop.peak_tflops", "at least 0", self.peak_tflops)
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
