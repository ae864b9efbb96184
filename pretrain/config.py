"""Config of a pretraining run."""

from pathlib import Path

from pretrain.mixture import MixtureConfig
from pretrain.probe.config import ProbeConfig
from pretrain.views import ViewsConfig
from voxscale.config import config
from voxscale.engine.config import EmaConfig, EngineConfig, LoopConfig, OptimConfig, TrackerConfig
from voxscale.loader import LoaderConfig
from voxscale.models.build import ModelConfig
from voxscale.models.stunet import STUNetConfig
from voxscale.stream import ShardStreamConfig, StoreStreamConfig


@config
class PretrainConfig:
    """What to pretrain, on what, how.

    Patch size, strides and input contract are not here: they come with the
    shards, which were cut for them, or from the plan of a store.

    Attributes:
        shards: Folder of shards, or its URL.
        store: Store to read random boxes from instead, or its URL; needs `plan`.
        plan: JSON file that `data_prep plan` wrote for it.
        run: Run folder: metrics, checkpoints, preview. Started again with the same config, a run goes on.
        seed: Of weights, sample order and every augmentation.
        model: Backbone; its classes, heads and strides are set by objective and shards.
        objective: Pretext tasks.
        ema: Teacher, if an objective wants one.
        stream: How bricks become samples.
        scans: How scans of a store become samples.
        views: How crops are changed before the objective sees them.
        engine: Precision and sharding.
        optim: Optimizer and schedule.
        loop: Length, batch, checkpoints.
        loader: Loading processes.
        probe: What is looked at while it trains.
        tracker: W&B.
    """

    shards: Path = Path("shards")
    store: Path | None = None
    plan: Path | None = None
    run: Path = Path("runs/pretrain")
    seed: int = 0
    model: ModelConfig = STUNetConfig(width=32, depth=1)
    objective: MixtureConfig = MixtureConfig()
    ema: EmaConfig = EmaConfig()
    stream: ShardStreamConfig = ShardStreamConfig()
    scans: StoreStreamConfig = StoreStreamConfig()
    views: ViewsConfig = ViewsConfig()
    engine: EngineConfig = EngineConfig()
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()
    loader: LoaderConfig = LoaderConfig()
    probe: ProbeConfig = ProbeConfig()
    tracker: TrackerConfig = TrackerConfig()
