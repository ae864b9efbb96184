"""Fine-tune from a checkpoint and from scratch, cross-validated: `python -m launch finetune PRESET`."""

import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from finetune.config import FinetuneConfig, InitConfig, IntensityConfig
from finetune.folds import learners, split
from finetune.results import collect, fold_folder, save_previews, score_cases
from finetune.segment import segment
from voxscale import dist
from voxscale.augment import brightness, gamma, noise
from voxscale.augment.resample import resample
from voxscale.batch import Batch, Losses
from voxscale.config import config_hash, from_dict, load_json, to_dict
from voxscale.contract import InputContract, require_same
from voxscale.engine import checkpoint
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.export import keep_weights_only
from voxscale.engine.layout import settle
from voxscale.engine.loop import train
from voxscale.engine.meter import BACKWARD
from voxscale.engine.run import find_checkpoint, first_weights, network_input, open_run
from voxscale.engine.tracker import Tracker
from voxscale.engine.types import Engine
from voxscale.engine.watchdog import RanksWatch
from voxscale.entry import contents
from voxscale.errors import CheckpointError, ContractError, DataError
from voxscale.files import sha256_file, write_arrays, write_json
from voxscale.incidents import Incidents
from voxscale.loader import load
from voxscale.losses.deep_supervision import deep_supervision
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.models.build import ModelConfig, adapt, build, read_config
from voxscale.models.interface import Backbone
from voxscale.models.released.load import Released, read_released, transfer_released
from voxscale.models.released.report import KeyReport
from voxscale.models.transfer import TransferReport, transfer
from voxscale.patches import Plan
from voxscale.progress import Progress
from voxscale.samples import all_samples
from voxscale.seed import derive, rng
from voxscale.store import Store, open_store
from voxscale.stream import CaseStream, rank_indices

log = logging.getLogger("voxscale")


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that the trainings of one experiment share.

    Attributes:
        store: Labelled scans.
        plan: Contract, patch and strides.
        cases: Ids of all labelled scans.
        classes: Names by label, background left out.
        model: Backbone of the checkpoint with this task's outputs.
        weights: The checkpoint's weights, or the released file.
        inputs: Hash of store, plan and checkpoint.
    """

    store: Store
    plan: Plan
    cases: tuple[str, ...]
    classes: dict[int, str]
    model: ModelConfig
    weights: Mapping[str, Tensor] | Released
    inputs: dict[str, str]

    @property
    def subjects(self) -> dict[str, str]:
        """Subject of each case."""
        return {case: self.store.entries[case].subject for case in self.cases}


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train and test both arms on every fold and seed; finished ones are not done again; every rank calls.

    Returns:
        The results, as written to `run/results.json`; see docs/design.md.

    Raises:
        CheckpointError: If there is no checkpoint, or it is of another architecture.
        ContractError: If the task was prepared under another input contract than the checkpoint.
        ConfigError: If the task has too few subjects for the folds.
    """
    with RanksWatch(config.loop.watch):  # a rank may be lost before the first step too
        task = open_task(config)
    with open_run(config.run, config, task.inputs, fixed=("engine.accumulate",)):  # arms are compared
        subjects = task.subjects
        tests = split(subjects, config.folds)
        rows: list[dict[str, Any]] = []
        for seed, (fold, test), arm in itertools.product(config.seeds, enumerate(tests), config.arms):
            folder = fold_folder(config.run, arm, seed, fold)
            done = folder / "cases.json"
            if dist.from_rank_0("done" if done.exists() else "") != "done":
                learn = learners(subjects, test, config.subjects, derive(seed, fold))
                name = f"{arm} {fold + 1}/{config.folds}"
                with RanksWatch(config.loop.watch) as starting:
                    train_and_test(config, task, folder, arm, seed, learn, test, name, starting)
                with RanksWatch(config.loop.watch, "score") as watching:
                    if dist.rank() == 0:
                        place = {"fold": fold, "seed": seed, "arm": arm}
                        write_json(done, score(task, folder, test, place, watching))
                        keep_weights_only(folder)
            rows += json.loads(done.read_text())
        results = collect(config, task.classes, rows)
        if dist.rank() == 0:
            both = len(config.arms) == 2
            results["previews"] = save_previews(task.store, config.run, rows) if both else []
            write_json(config.run / "results.json", results)
    dist.stop()
    return results


def open_task(config: FinetuneConfig) -> Task:
    """Open store, plan and checkpoint, and refuse what does not fit together."""
    store = open_store(config.store)
    plan = load_json(Plan, config.plan)
    source_model, contract, weights, source_hash = open_source(config)
    if store.contract is None:
        raise ContractError("task must be prepared under the checkpoint's contract; run data_prep plan on its store")
    require_same(contract or plan.contract, store.contract, "task store")
    require_same(contract or plan.contract, plan.contract, "plan")
    cases = tuple(sorted(case for case, entry in store.entries.items() if entry.label and not entry.planar))
    if not cases:
        raise DataError("task must hold labelled scans, not only unlabelled ones; see its ledger.jsonl", "no_label")
    labels = max(store.classes)
    model = adapt(source_model, in_channels=1, classes=labels + 1, heads=config.heads, strides=plan.strides)
    inputs = {
        "store": config_hash({case: contents(store.entries[case]) for case in cases}),
        "plan": config_hash(plan),
        "checkpoint": source_hash,
    }
    return Task(store, plan, cases, dict(store.classes), model, weights, inputs)


def open_source(
    config: FinetuneConfig,
) -> tuple[ModelConfig, InputContract | None, Mapping[str, Tensor] | Released, str]:
    """Model, contract, weights and hash of what the pretrained arm starts from; released files state no contract."""
    if config.backbone is not None:
        return config.backbone, None, {}, config_hash(config.backbone)
    if config.init.weights is not None and config.init.format is not None:
        released = read_released(config.init.weights, config.init.format)
        return released.config, None, released, sha256_file(config.init.weights)
    source = find_pretrained(config.checkpoint)
    says = checkpoint.read_about(source)
    contract = from_dict(InputContract, says["contract"], "checkpoint.contract")
    model = read_config(says["model"], "checkpoint.model")
    return model, contract, checkpoint.load_model(source), sha256_file(source / "manifest.json")


def find_pretrained(path: Path) -> Path:
    """A checkpoint folder itself, or the newest undamaged one of a run folder.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    if (path / "manifest.json").is_file():
        checkpoint.verify(path)
        return path
    found = checkpoint.latest(path)
    if found is None:
        raise CheckpointError(f"finetune.checkpoint must be a run with a checkpoint, not {path.name}; pretrain first")
    return found


def train_and_test(
    config: FinetuneConfig,
    task: Task,
    folder: Path,
    arm: str,
    seed: int,
    learn: Sequence[str],
    test: Sequence[str],
    name: str,
    starting: RanksWatch,
) -> None:
    """Train one arm on the cases `learn`, then write its predictions of the cases `test`."""
    stream = CaseStream(
        config.store, learn, task.plan.patch, task.plan.contract, config.stream, derive(seed, "batches")
    )
    settled = dataclasses.replace(config, engine=settle(config.engine, task.model))
    model, engine, start = open_engine(settled, task, folder, arm, seed, starting)
    says = {"model": to_dict(task.model), "contract": to_dict(task.plan.contract), "config": to_dict(config)}
    tracker = None
    if dist.rank() == 0:
        public = {"config_hash": config_hash(config), "arm": arm, "model": says["model"]}
        tracker = Tracker(folder, config.tracker, public, start.step)
    loop = config.loop
    ranks = (config.engine.accumulate, dist.rank(), dist.world_size())
    incidents = Incidents(folder, dist.rank(), config.loader.replaced)
    indices = rank_indices(start.step, loop.steps, loop.batch, *ranks)
    batches = incidents.counting(load(stream, indices, config.loader, False, incidents.record))

    def objective(engine: Engine, batch: Batch) -> tuple[Losses, int]:
        return segmentation_loss(engine, batch, task.plan.patch, settled)

    flops = float(BACKWARD * model.flops(task.plan.patch))
    where = (folder, start, says, tracker)
    train(name, engine, batches, objective, loop, config.optim, *where, flops=flops, starting=starting)
    with RanksWatch(loop.watch, "test") as watching:
        predict_cases(engine, settled, task, folder, test, watching)
    if tracker is not None:
        tracker.close()
    engine.destroy()


def open_engine(
    config: FinetuneConfig, task: Task, folder: Path, arm: str, seed: int, starting: RanksWatch
) -> tuple[Backbone, Engine, Position]:
    """The model of an arm in its engine, from the newest checkpoint if there is one, and where training stands."""
    micro = micro_batch(config.loop.batch, config.engine.accumulate, dist.world_size())
    starting.at("weights")
    model, weights = begin(config, task, arm, seed)
    found = find_checkpoint(folder)
    if found is not None:
        weights = checkpoint.load_weights(found)
    starting.at("engine")
    engine = start_engine(model, weights, config.engine, config.optim, micro)
    del weights  # the engine has its own
    starting.at("state")
    start = Position() if found is None else checkpoint.restore(found, engine, config.optim)
    starting.at("begin")
    return model, engine, start


def begin(config: FinetuneConfig, task: Task, arm: str, seed: int) -> tuple[Backbone, dict[str, Tensor]]:
    """The model of an arm and its first weights; rank 0 writes down what was transferred."""
    model = build(task.model)
    # Both arms start from the same draw, so that they differ in what was transferred and in nothing else.
    weights = first_weights(model, derive(seed, "weights"))
    if arm == "pretrained":
        report = take_over(model, task.weights, config.init)
        weights = {key: p.detach().clone() for key, p in model.named_parameters()}
        if dist.rank() == 0:
            write_json(config.run / "transfer.json", report.to_dict())
            log.info("transfer: %s", report.text())
    return model, weights


def take_over(
    model: Backbone, weights: Mapping[str, Tensor] | Released, init: InitConfig
) -> TransferReport | KeyReport:
    """Copy all but the heads."""
    fresh = model.head_prefixes
    if isinstance(weights, Released):
        return transfer_released(model, weights, fresh=fresh, divide=init.divide, partial=init.partial)
    return transfer(model, weights, fresh=fresh)


def segmentation_loss(
    engine: Engine, batch: Batch, patch: tuple[int, int, int], config: FinetuneConfig
) -> tuple[Losses, int]:
    """Dice and cross-entropy with deep supervision on augmented patches; outside the scan lies background.

    Every rank calls: both are those of the patches of all ranks, so that their number does not matter.
    """
    over = all_samples()
    images, _, label = resample(batch, patch)
    assert label is not None  # a case stream yields labelled patches only
    images = change_intensity(images, batch.seeds, config.intensity)
    outputs = engine(network_input(images, engine, config.engine.channels_last == "on"))

    def both(logits: Tensor, target: Tensor) -> Tensor:
        return torch.stack(dice_and_cross_entropy(logits, target, pooled=True, background=False, over=over))

    dice, cross_entropy = deep_supervision(both, outputs, label[:, 0])
    terms = {"dice": dice, "cross_entropy": cross_entropy}
    return Losses(terms, dict.fromkeys(terms, 1.0), {}), images.numel()


def change_intensity(
    images: Float[Tensor, "b 1 z y x"], seeds: Sequence[int], config: IntensityConfig
) -> Float[Tensor, "b 1 z y x"]:
    """Noise, brightness and gamma, each drawn from the sample's own seed."""
    images = noise.apply(images, noise.sample([rng(s, "noise") for s in seeds], config.noise))
    images = brightness.apply(images, brightness.sample([rng(s, "brightness") for s in seeds], config.brightness))
    return gamma.apply(images, gamma.sample([rng(s, "gamma") for s in seeds], config.gamma))


@torch.no_grad()
def predict_cases(
    engine: Engine, config: FinetuneConfig, task: Task, folder: Path, test: Sequence[str], watching: RanksWatch
) -> None:
    """Segment the test cases and keep the labels; every rank calls.

    Ranks share the cases, but under ZeRO-3 a forward pass is a joint act, so
    there every rank does every case.
    """
    engine.eval()
    together = config.engine.zero_stage == 3
    mine = test if together else test[dist.rank() :: dist.world_size()]

    def predict(images: Tensor) -> Tensor:
        watching.done_a_part()
        return engine(network_input(images, engine, config.engine.channels_last == "on"))[0]

    plan = task.plan
    with Progress("test", len(mine), "cases", show=dist.rank() == 0) as bar:
        for case in mine:
            labels = segment(predict, task.store, case, plan.contract, plan.patch, config.inference, engine.device)
            if not together or dist.rank() == 0:
                write_arrays(folder / f"{case}.npz", {"labels": labels})
            bar.advance()
            watching.done_a_part()


def score(
    task: Task, folder: Path, test: Sequence[str], place: Mapping[str, Any], watching: RanksWatch
) -> list[dict[str, Any]]:
    """Rows of all test cases, as of `score_cases`."""
    rows: list[dict[str, Any]] = []
    for case in test:
        rows += score_cases(task.store, sorted(task.classes), folder, [case], place)
        watching.done_a_part()
    return rows
