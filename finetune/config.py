"""Config of a fine-tuning experiment."""

from pathlib import Path
from typing import Literal

from voxscale.augment.brightness import BrightnessConfig
from voxscale.augment.gamma import GammaConfig
from voxscale.augment.noise import NoiseConfig
from voxscale.config import config, require
from voxscale.engine.config import EngineConfig, LoopConfig, OptimConfig, TrackerConfig
from voxscale.loader import LoaderConfig
from voxscale.models.build import ModelConfig
from voxscale.models.released.load import FORMS, Form
from voxscale.stream import CaseStreamConfig

Arm = Literal["scratch", "pretrained"]


@config
class IntensityConfig:
    """How the values of training patches are changed.

    Attributes:
        noise: Gaussian noise.
        brightness: Multiplied values.
        gamma: Gamma curve.
    """

    noise: NoiseConfig = NoiseConfig(probability=0.2)
    brightness: BrightnessConfig = BrightnessConfig(probability=0.2)
    gamma: GammaConfig = GammaConfig(probability=0.3)


@config
class InferenceConfig:
    """Sliding-window inference.

    Attributes:
        overlap: Share of a window that it shares with the next one along each axis.
        batch: Windows in one forward pass.
    """

    overlap: float = 0.5
    batch: int = 2

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(0 <= self.overlap < 1, "inference.overlap", "in [0, 1)", self.overlap)
        require(self.batch >= 1, "inference.batch", "at least 1", self.batch)


@config
class InitConfig:
    """Weights that another project released, in place of a pretraining's checkpoint.

    Attributes:
        weights: The file as it was published; None to start from `checkpoint`.
        format: Whose it is: `stunet`, `nnssl` (OpenMind), `swin_unetr` (MONAI), `misfm`, `lvm_med`.
        divide: Whether first convolutions that are repeated over several image channels are divided by their number.
        partial: Take the weights that fit where others do not; `transfer.json` names them all.
    """

    weights: Path | None = None
    format: Form | None = None
    divide: bool = True
    partial: bool = False

    def __post_init__(self) -> None:
        """Check that both are given or none; raises `ConfigError`."""
        both = (self.weights is None) == (self.format is None)
        require(both, "init.format", "given if init.weights is, and only then", self.format, FORMS)


@config
class FinetuneConfig:
    """Which checkpoint on which task, how, and how often repeated.

    Attributes:
        store: Store of the labelled task, ingested and planned.
        plan: The plan that `data_prep plan` wrote for it (contract, patch, strides).
        checkpoint: Run folder of the pretraining, or one checkpoint folder in it.
        backbone: What trains from scratch; `checkpoint` and `init` are then not read.
        init: Released weights to start from instead; `checkpoint` is then not read.
        run: Run folder: results per fold and arm. Started again with the same config, it goes on.
        folds: Parts of the cross-validation, by subject; every case is tested once per seed.
        seeds: Repeats with other heads, sample orders and augmentations.
        subjects: How many subjects each training sees, drawn with its seed; 0 for all that its fold leaves.
        arms: What is trained: from scratch, from the pretrained weights, or each on the same cases.
        heads: Deep-supervision outputs.
        stream: How cases become samples.
        intensity: How values of patches are changed.
        engine: Precision and sharding.
        optim: Optimizer and schedule.
        loop: Length, batch, checkpoints of each training.
        loader: Loading processes.
        inference: Sliding window.
        tracker: W&B.
    """

    store: Path = Path("store")
    plan: Path = Path("plan.json")
    checkpoint: Path = Path("runs/pretrain")
    backbone: ModelConfig | None = None
    init: InitConfig = InitConfig()
    run: Path = Path("runs/finetune")
    folds: int = 4
    seeds: tuple[int, ...] = (0,)
    subjects: int = 0
    arms: tuple[Arm, ...] = ("scratch", "pretrained")
    heads: int = 3
    stream: CaseStreamConfig = CaseStreamConfig()
    intensity: IntensityConfig = IntensityConfig()
    engine: EngineConfig = EngineConfig()
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig(steps=500, batch=2)
    loader: LoaderConfig = LoaderConfig()
    inference: InferenceConfig = InferenceConfig()
    tracker: TrackerConfig = TrackerConfig()

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.folds >= 2, "finetune.folds", "at least 2", self.folds)
        unique = len(self.seeds) == len(set(self.seeds)) > 0
        require(unique, "finetune.seeds", "one or more different numbers", self.seeds)
        require(self.subjects >= 0, "finetune.subjects", "at least 0", self.subjects)
        own = len(self.arms) == len(set(self.arms)) > 0
        require(own, "finetune.arms", "one or two different ones", self.arms, ("scratch", "pretrained"))
        alone = self.backbone is None or self.arms == ("scratch",)
        require(alone, "finetune.arms", "scratch alone where a backbone is given", self.arms)
        require(1 <= self.heads <= 5, "finetune.heads", "1 to 5", self.heads)
