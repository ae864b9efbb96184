"""The whole chain: scans -> stores -> shards -> pretraining -> fine-tuning -> report, each stage once.

Stages are the same commands that a user would type. A finished stage is known
by the hash of its config and of everything before it, and is skipped.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from data_prep.phantom import PhantomConfig
from finetune.config import FinetuneConfig
from launch.cluster import Cluster
from launch.fit import fit_folds, fit_pretraining
from launch.machine import describe
from launch.report import ReportInputs, fine_print, result_table, sentence, write_report
from launch.stages import Chain, Done, data_prep, ingest, plan_and_pack
from launch.submit import run_stage
from pretrain.config import PretrainConfig
from voxscale.config import config, load_json, to_dict, to_flags
from voxscale.errors import ConfigError
from voxscale.files import locked
from voxscale.patches import Plan


@config
class DemoConfig:
    """Config of the whole chain; paths in its parts are filled in by the chain.

    Attributes:
        phantom: Size of the synthetic cohort, where no scans are given.
        ingest: Checks of both stores.
        patch_voxels: Most voxels of a patch.
        pack: Bricks and tars.
        pretrain: Pretraining.
        finetune: Fine-tuning and its from-scratch twin.
        cluster: Where the two trainings run.
    """

    phantom: PhantomConfig
    ingest: IngestConfig
    patch_voxels: int
    pack: PackConfig
    pretrain: PretrainConfig
    finetune: FinetuneConfig
    cluster: Cluster


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the trainings start from.

    Attributes:
        task: Store of labelled scans.
        data: Store of unlabelled scans.
        plan: Folder with `plan.json`: contract, patch and strides.
        shards: Bricks of the unlabelled scans.
        pretrain: Pretraining config that fits the plan.
        finetune: Fine-tuning config that fits the task.
    """

    task: Done
    data: Done
    plan: Done
    shards: Done
    pretrain: PretrainConfig
    finetune: FinetuneConfig


def demo(settings: DemoConfig, data: Sequence[Path], task: Path | None, out: Path) -> Path:
    """Run the whole chain.

    Args:
        settings: Config of every part.
        data: Folders of unlabelled scans; none for the synthetic cohort.
        task: Folder with labelled scans; required with `data`.
        out: Where everything goes; run again, it goes on where it was.

    Returns:
        Path of the report.

    Raises:
        ConfigError: If only one of `data` and `task` is given, or a folder is not there.
        VoxScaleError: Whatever stops a stage, in one line.
    """
    out = out.resolve()
    check_folders(data, task, out)
    with locked(out):
        return _run(settings, [p.resolve() for p in data], task and task.resolve(), out)


def check_folders(data: Sequence[Path], task: Path | None, out: Path) -> None:
    """Refuse folders that are not there, or that the output lies in; raises `ConfigError`."""
    if bool(data) != (task is not None):
        raise ConfigError("DATA and TASK must be given together, or neither for synthetic scans")
    for folder in [*data, *([task] if task else [])]:
        if not folder.is_dir():
            raise ConfigError(f"DATA and TASK must be folders that exist, not {folder.name!r}")
        if out.is_relative_to(folder.resolve()):
            raise ConfigError("OUT must lie outside DATA and TASK, else its files would be taken for scans")
    pairs = (("images", "labels"), ("imagesTr", "labelsTr"))
    if task and not any((task / image).is_dir() and (task / label).is_dir() for image, label in pairs):
        raise ConfigError("TASK must be a folder that holds images/ and labels/ (or imagesTr/ and labelsTr/)")


def _run(settings: DemoConfig, data: Sequence[Path], task: Path | None, out: Path) -> Path:
    chain = Chain(out)
    synthetic = task is None
    if task is None:
        data, task = _phantoms(chain, settings)
    ready = _prepare(chain, settings, data, task)
    trained, tuned = _train(chain, settings, ready)
    page = write_report(
        out,
        ReportInputs(
            title="VoxScale: what pretraining bought",
            synthetic=synthetic,
            data_store=ready.data.folder,
            task_store=ready.task.folder,
            shards=ready.shards.folder,
            pretrain_run=trained.folder,
            finetune_run=tuned.folder,
            seconds=chain.seconds,
            peak_rss_gb=round(chain.peak_gb, 3),
            config_hash=tuned.digest,
            machine=describe(),
        ),
    )
    results = json.loads((tuned.folder / "results.json").read_text())
    print(f"\n{result_table(results)}\n{sentence(results)}\n{fine_print(results)}\n\nreport: {os.path.relpath(page)}")
    return page


def _phantoms(chain: Chain, settings: DemoConfig) -> tuple[list[Path], Path]:
    """Write the synthetic cohort; returns its unlabelled and its labelled part."""
    flags = to_flags(settings.phantom)
    made = chain.stage("phantom", to_dict(settings.phantom), lambda path: data_prep("phantom", path, *flags))
    return [made.folder / "unlabelled"], made.folder / "task"


def _prepare(chain: Chain, settings: DemoConfig, data: Sequence[Path], task: Path) -> Prepared:
    """Two stores, the plan that the task asks for, and shards cut for it; what cannot work is refused early."""
    labelled = ingest(chain, "task", [task], settings.ingest)
    finetune = fit_folds(settings.finetune, labelled.folder)
    unlabelled = ingest(chain, "ingest", data, dataclasses.replace(settings.ingest, labels="ignore"))
    plan, shards = plan_and_pack(chain, labelled, unlabelled, settings.patch_voxels, settings.pack)
    pretrain = fit_pretraining(settings.pretrain, load_json(Plan, plan.folder / "plan.json"))
    return Prepared(labelled, unlabelled, plan, shards, pretrain, finetune)


def _train(chain: Chain, settings: DemoConfig, ready: Prepared) -> tuple[Done, Done]:
    """Pretraining, then fine-tuning and its twin."""

    def pretrain(run: Path) -> None:
        full = dataclasses.replace(ready.pretrain, shards=ready.shards.folder, run=run)
        run_stage("pretrain", full, settings.cluster, run / "logs")

    trained = chain.stage("pretrain", to_dict(ready.pretrain), pretrain, after=[ready.shards])

    def finetune(run: Path) -> None:
        full = dataclasses.replace(
            ready.finetune,
            store=ready.task.folder,
            plan=ready.plan.folder / "plan.json",
            checkpoint=trained.folder,
            run=run,
        )
        run_stage("finetune", full, settings.cluster, run / "logs")

    tuned = chain.stage("finetune", to_dict(ready.finetune), finetune, after=[ready.task, ready.plan, trained])
    return trained, tuned
