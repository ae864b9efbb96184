"""Pretrain a backbone on unlabelled scans, from shards or a store: `python -m launch pretrain PRESET`."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from pretrain.config import PretrainConfig
from pretrain.labelled import LabelledBatches, of_batch, open_labelled, write_ledger
from pretrain.mixture import branches
from pretrain.network import Job, Pretraining, costs, wanted
from pretrain.objectives.interface import crops_per_sample
from pretrain.preview import make_preview
from pretrain.probe.data import read_labelled, read_unlabelled
from pretrain.probe.heads import Shown, read_shown
from pretrain.probe.landmarks import read_landmarks
from pretrain.probe.prober import Prober
from pretrain.saturation import SaturationWatch
from pretrain.scene import Labelled, Scene
from pretrain.source import Source, check_graphs, find_source, open_source, open_upright
from voxscale import dist
from voxscale.batch import Batch, Losses
from voxscale.config import config_hash, require
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.heap import keep_freed_memory
from voxscale.engine.layout import settle
from voxscale.engine.loop import train
from voxscale.engine.memory import explained_look
from voxscale.engine.run import about, find_checkpoint, first_weights, open_run
from voxscale.engine.tracker import Tracker
from voxscale.engine.types import Engine
from voxscale.engine.watchdog import RanksWatch
from voxscale.files import write_arrays
from voxscale.incidents import Incidents
from voxscale.loader import load
from voxscale.models.build import ModelConfig, adapt, build
from voxscale.samples import OWN, Samples, all_samples
from voxscale.stream import rank_indices, shuffle_quality
from voxscale.stream.quality import describe

log = logging.getLogger("voxscale")


def pretrain(config: PretrainConfig) -> None:
    """Train to the last step, going on from the newest checkpoint if there is one; every rank calls.

    Raises:
        ConfigError: If parts of the config, or config and data, do not fit together.
        DataError: If shards or store are missing or damaged.
        TrainingError: If a value is not finite or a checkpoint cannot be written.
    """
    with RanksWatch(config.loop.watch) as starting:  # a rank may be lost before the first step too
        _pretrain(config, starting)
    dist.stop()


def _pretrain(config: PretrainConfig, starting: RanksWatch) -> None:
    """Longer than others, so that a run can be read from start to end in one place."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    micro = micro_batch(config.loop.batch, config.engine.accumulate, dist.world_size())
    check_graphs(config, micro)
    source = find_source(config)
    patch = source.patch
    model_config = backbone(config, source)
    network = make_network(config, model_config, patch)
    settled = dataclasses.replace(config, engine=settle(config.engine, model_config))
    crops = crops_per_sample(network.objectives().values())
    stream, inputs = open_source(config, source, crops)
    labelled = open_labelled(config.objective, source, config.seed)
    inputs |= {} if labelled is None else {"labelled": labelled.fingerprint}
    # Where nothing learns from unlabelled scans, none is read: labelled samples are the batches.
    labels_only = labelled if config.objective.active == ("supervised",) else None
    with open_run(config.run, config, inputs):
        starting.at("weights")
        found = find_checkpoint(config.run)
        weights = first_weights(network, config.seed) if found is None else checkpoint.load_weights(found)
        starting.at("engine")
        engine = start_engine(network, weights, settled.engine, config.optim, micro)
        del weights  # the engine has its own
        starting.at("state")
        teacher = make_teacher(engine, network, config, model_config, patch)
        start = Position() if found is None else checkpoint.restore(found, engine, config.optim)
        if found is not None and teacher is not None:
            teacher.restore(found)
        starting.at("begin")
        log.info("pretrain: step %d of %d", start.step, config.loop.steps)
        says = dict(about(config, model_config, source.contract))
        tracker = None
        if dist.rank() == 0:
            public = {"config_hash": config_hash(config), "model": says["model"], "contract": says["contract"]}
            tracker = Tracker(config.run, config.tracker, public, start.step, SaturationWatch().hear)
            if labelled is not None:
                write_ledger(labelled, config.run)
            if labels_only is None:
                quality = shuffle_quality(stream, config.loop.batch, least=20 * config.loop.batch)
                log.info("pretrain: %s", describe(quality))
        ranks = (config.engine.accumulate, dist.rank(), dist.world_size())
        incidents = Incidents(config.run, dist.rank(), config.loader.replaced)
        pin = engine.device.type == "cuda"

        def indices() -> Iterator[list[int]]:
            return rank_indices(start.step, config.loop.steps, config.loop.batch, *ranks)

        first_of = stream if labels_only is None else labels_only
        batches = incidents.counting(load(first_of, indices(), config.loader, pin, incidents.record))
        more = None
        if labelled is not None and labels_only is None:
            more = LabelledBatches(labelled, indices(), config.loader, pin, incidents)

        def see(batch: Batch, beside: Labelled | None, over: Samples = OWN) -> Scene:  # on its device
            progress = batch.indices[0] // config.loop.batch / config.loop.steps
            if labels_only is not None:
                beside = of_batch(labels_only, batch)
            return Scene(batch, patch, crops, config.views, source.contract.spacing, progress, beside, over)

        def objective(engine: Engine, batch: Batch) -> tuple[Losses, int]:
            step, within = divmod(batch.indices[0], config.loop.batch)
            first = within < micro * dist.world_size()  # of the micro-batches of a step
            scene = see(batch, None if more is None else more.beside(batch), all_samples())
            return losses(engine, network, scene, settled, teacher, first and due(config, step))

        def show(indices: Sequence[int]) -> Shown:
            batch, people = read_shown(first_of, indices)
            beside, others = None, people if labels_only is not None else ()
            if labelled is not None and labels_only is None:
                own, others = read_shown(labelled, indices)
                beside = of_batch(labelled, own.to(engine.device))
            return Shown(see(batch.to(engine.device), beside), people, others)

        def first_scene() -> Scene:
            return show(range(micro)).scene

        prober = make_prober(settled, engine, network, source, show, micro)
        flops, together, alone = costs(network.backbone, network.plans(first_scene()), micro)
        if together < alone:
            log.info("pretrain: %.2f of the encoder's work, as branches share passes", together / alone)
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
            follower=teacher,
            flops=flops,
            observer=prober,
            starting=starting,
        )
        shown = None
        less = f"show fewer crops (probe.patches, now {config.probe.patches})"
        pictures = "the pictures after training, which is saved"
        with RanksWatch(config.loop.watch, "pictures"), explained_look(engine, pictures, (less,)):
            if labels_only is None:
                shown = read_unlabelled(open_upright(config, source), patch, config.probe.patches)
            arrays = make_preview(engine, network, first_scene(), shown, micro, settled.engine.channels_last == "on")
        if dist.rank() == 0:
            write_arrays(config.run / "preview.npz", arrays | {"spacing": np.asarray(source.contract.spacing)})
        if tracker is not None:
            tracker.close()


def backbone(config: PretrainConfig, source: Source) -> ModelConfig:
    """The model without outputs, as the branches have their own, and with the strides that the patch allows."""
    return adapt(config.model, in_channels=1, classes=0, heads=0, strides=source.strides)


def make_network(config: PretrainConfig, model: ModelConfig, patch: tuple[int, int, int]) -> Pretraining:
    """Backbone and branches that fit it and the patch.

    Raises:
        ConfigError: If they do not.
    """
    own = build(model)
    network = Pretraining(own, branches(config.objective, own))
    for branch in network.objectives().values():
        branch.check(own, patch)
    hides = "masked_reconstruction" in config.objective.active
    require(not (hides and config.engine.compile), "engine.compile", "off where parts of images are hidden", True)
    return network


def make_teacher(
    engine: Engine, network: Pretraining, config: PretrainConfig, model: ModelConfig, patch: tuple[int, int, int]
) -> Teacher | None:
    """The average of the network's weights, if a branch wants it."""
    if not any(branch.wants_teacher for branch in network.objectives().values()):
        return None
    return Teacher(engine, config.ema, config.loop.steps, make_network(config, model, patch))


def due(config: PretrainConfig, step: int) -> bool:
    """Whether gradients are measured in a step."""
    every = config.objective.measure_every
    return every > 0 and step % every == 0


def losses(
    engine: Engine, network: Pretraining, scene: Scene, config: PretrainConfig, teacher: Teacher | None, measure: bool
) -> tuple[Losses, int]:
    """Losses of all branches and the voxels that the encoder saw; gradients are measured if there are several."""
    mixture, twin = config.objective, None
    if teacher is not None:
        teacher.refresh()
        assert isinstance(teacher.module, Pretraining)
        twin = teacher.module
    several = len(mixture.active) > 1 or bool(network.weighed)
    job = Job(
        plans=network.plans(scene),
        weights=mixture.weights_at(scene.progress),
        teacher=twin,
        measure=measure and several,
        balance=mixture.balance == "gradients",
        channels_last=config.engine.channels_last == "on",
        over=scene.over,
    )
    out = engine(job)
    voxels = sum(one.images.numel() for twin in (False, True) for one in wanted(job.plans, teacher=twin).values())
    return Losses(out["terms"], out["weights"], out["watched"]), voxels


def make_prober(
    config: PretrainConfig,
    engine: Engine,
    network: Pretraining,
    source: Source,
    show: Callable[[Sequence[int]], Shown],
    micro: int,
) -> Prober | None:
    """Read what is to be probed, if anything is.

    Raises:
        ConfigError: If the store of labelled scans holds too few subjects.
        DataError: If the store or a shard is missing or damaged.
    """
    probe, seed = config.probe, config.seed
    if not probe.every:
        return None
    labelled = None if probe.labelled is None else read_labelled(probe, source.patch, source.contract, seed)
    unlabelled = read_unlabelled(open_upright(config, source), source.patch, probe.patches)
    landmarks = None if probe.labelled is None else read_landmarks(probe, source.patch, source.contract, seed)
    return Prober(
        probe,
        engine,
        network,
        unlabelled,
        labelled,
        landmarks,
        source.contract.spacing,
        show,
        config.run,
        config.loop.steps,
        micro,
        seed,
        config.engine.channels_last == "on",
    )
