"""Pretrain a backbone on shards of unlabelled scans: `python -m launch pretrain PRESET`."""

import dataclasses
import logging

import numpy as np
import torch

from pretrain.config import PretrainConfig
from pretrain.objectives import volume_fusion as vf
from pretrain.views import make_views
from voxscale import dist
from voxscale.batch import Batch, Losses, Views
from voxscale.config import config_hash
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train
from voxscale.engine.meter import BACKWARD
from voxscale.engine.run import about, find_checkpoint, first_weights, network_input, open_run
from voxscale.engine.tracker import Tracker
from voxscale.engine.types import Engine
from voxscale.files import write_arrays
from voxscale.incidents import Incidents
from voxscale.loader import LoaderConfig, load
from voxscale.models.build import ModelConfig, adapt, build
from voxscale.shards import Manifest
from voxscale.stream import ShardStream, rank_indices, shuffle_quality
from voxscale.stream.quality import describe

log = logging.getLogger("voxscale")


def pretrain(config: PretrainConfig) -> None:
    """Train to the last step, going on from the newest checkpoint if there is one; every rank calls.

    Longer than others, so that a run can be read from start to end in one place.

    Raises:
        ConfigError: If parts of the config, or config and shards, do not fit together.
        DataError: If shards are missing or damaged.
        TrainingError: If a value is not finite or a checkpoint cannot be written.
    """
    dist.start()
    micro = micro_batch(config.loop.batch, config.engine.accumulate, dist.world_size())
    stream_config = dataclasses.replace(config.stream, views=config.objective.views_per_sample)
    stream = ShardStream(config.shards, stream_config, config.seed)
    vf.check(config.objective, stream.manifest.patch)
    model_config = backbone(config, stream.manifest)
    with open_run(config.run, config, {"shards": stream.manifest_sha256}):
        found = find_checkpoint(config.run)
        model = build(model_config)
        weights = first_weights(model, config.seed) if found is None else checkpoint.load_weights(found)
        engine = start_engine(model, weights, config.engine, config.optim, micro)
        start = Position() if found is None else checkpoint.restore(found, engine, config.optim)
        log.info("pretrain: step %d of %d", start.step, config.loop.steps)
        says = dict(about(config, model_config, stream.manifest.contract))
        tracker = None
        if dist.rank() == 0:
            public = {"config_hash": config_hash(config), "model": says["model"], "contract": says["contract"]}
            tracker = Tracker(config.run, config.tracker, public, start.step)
            log.info("pretrain: %s", describe(shuffle_quality(stream, config.loop.batch, least=20 * config.loop.batch)))
        indices = rank_indices(
            start.step, config.loop.steps, config.loop.batch, config.engine.accumulate, dist.rank(), dist.world_size()
        )
        incidents = Incidents(config.run, dist.rank(), config.loader.replaced)
        loaded = load(stream, indices, config.loader, engine.device.type == "cuda", incidents.record)
        batches = incidents.counting(loaded)

        def objective(engine: Engine, batch: Batch) -> tuple[Losses, int]:
            views = make_views(batch, stream.manifest.patch, stream_config.views, config.views)
            return fuse_and_guess(engine, views, config), views.images[:, 0].numel()

        flops = float(BACKWARD * model.flops(stream.manifest.patch))  # one fused image is seen of each sample
        train(
            "pretrain",
            engine,
            batches,
            objective,
            config.loop,
            config.optim,
            config.run,
            start,
            says,
            tracker,
            flops=flops,
        )
        save_preview(engine, stream, config)
        if tracker is not None:
            tracker.close()
    dist.stop()


def backbone(config: PretrainConfig, manifest: Manifest) -> ModelConfig:
    """The model with the outputs that the objective needs and the strides that the patch allows."""
    return adapt(config.model, in_channels=1, classes=config.objective.classes, heads=1, strides=manifest.strides)


def fuse_and_guess(engine: Engine, views: Views, config: PretrainConfig) -> Losses:
    """Volume Fusion's loss with images in the engine's number type."""
    return vf.volume_fusion(
        lambda x: engine(network_input(x, engine, config.engine.channels_last)), views, config.objective
    )


@torch.no_grad()
def save_preview(engine: Engine, stream: ShardStream, config: PretrainConfig) -> None:
    """Write one fused volume, its label map and the model's guess for the report; every rank calls."""
    patch, contract = stream.manifest.patch, stream.manifest.contract
    samples = -(-2 // stream.config.views)  # two crops: of one scan, or of two
    batch = next(load(stream, iter([list(range(samples))]), LoaderConfig(), False, lambda _: None)).to(engine.device)
    views = make_views(batch, patch, stream.config.views, config.views)
    background, foreground, label, fused = vf.fuse_views(views, config.objective)
    engine.eval()
    logits = engine(network_input(fused[:1], engine, config.engine.channels_last))[0]
    if dist.rank() == 0:
        parts = {"background": background, "foreground": foreground, "fused": fused, "label": label}
        arrays = {name: part[0, 0].float().cpu().numpy() for name, part in parts.items()}
        arrays["prediction"] = logits[0].float().argmax(0).cpu().numpy()
        write_arrays(config.run / "preview.npz", arrays | {"spacing": np.asarray(contract.spacing)})
