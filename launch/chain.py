"""The whole chain: scans -> stores -> shards -> pretraining -> fine-tuning -> report, each stage once.

Stages are the same commands that a user would type. A finished stage is known
by the hash of its config and of everything before it, and is skipped.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from data_prep.phantom import PhantomConfig
from finetune.config import FinetuneConfig
from launch.cluster import Cluster
from launch.fit import fit_blocks, fit_folds
from launch.machine import MemoryWatch, describe
from launch.report import ReportInputs, result_table, sentence, write_report
from launch.submit import run_stage
from pretrain.config import PretrainConfig
from voxscale.config import config, config_hash, load_json, to_dict, to_flags
from voxscale.errors import ConfigError, DataError
from voxscale.files import locked, write_json
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


class Chain:
    """Runs stages in order and remembers which are done.

    Attributes:
        out: Folder of everything.
        seconds: Duration of each stage, also of those done before.
        peak_gb: Largest memory of all processes together, over all stages, in GB.
        hash: Of everything up to the last stage.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}
        self.peak_gb = 0.0
        self.hash = ""

    def stage(self, name: str, depends: object, work: Callable[[Path], object]) -> tuple[Path, Any]:
        """Run one stage, or find it done.

        Args:
            name: Of the stage.
            depends: Plain values that its result depends on, besides the stages before.
            work: Does it, given the stage's own folder; returns plain values to remember.

        Returns:
            The stage's folder and what `work` returned, now or then.
        """
        self.hash = config_hash({"stage": name, "depends": depends, "before": self.hash})
        folder = self.out / f"{name}-{self.hash[:8]}"
        marker = self.out / "done" / f"{folder.name}.json"
        if marker.is_file():
            known = json.loads(marker.read_text())
            print(f"{name}: done before in {known['seconds']:.1f} s, skipped", file=sys.stderr, flush=True)
        else:
            began = time.monotonic()
            with MemoryWatch() as memory:
                result = work(folder)
            known = {"seconds": time.monotonic() - began, "peak_gb": memory.peak_gb, "result": result}
            write_json(marker, known)
        self.seconds[name] = known["seconds"]
        self.peak_gb = max(self.peak_gb, known["peak_gb"])
        return folder, known["result"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the trainings start from.

    Attributes:
        task_store: Labelled scans.
        data_store: Unlabelled scans.
        plan: File with contract, patch and strides.
        shards: Bricks of the unlabelled scans.
        pretrain: Pretraining config that fits the plan.
        finetune: Fine-tuning config that fits the task.
    """

    task_store: Path
    data_store: Path
    plan: Path
    shards: Path
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
    if bool(data) != (task is not None):
        raise ConfigError("DATA and TASK must be given together, or neither for synthetic scans")
    for folder in [*data, *([task] if task else [])]:
        if not folder.is_dir():
            raise ConfigError(f"DATA and TASK must be folders that exist, not {folder.name!r}")
    with locked(out):
        return _run(settings, [p.resolve() for p in data], task and task.resolve(), out)


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
            data_store=ready.data_store,
            task_store=ready.task_store,
            shards=ready.shards,
            pretrain_run=trained,
            finetune_run=tuned,
            seconds=chain.seconds,
            peak_rss_gb=round(chain.peak_gb, 3),
            config_hash=chain.hash,
            machine=describe(),
        ),
    )
    results = json.loads((tuned / "results.json").read_text())
    print(f"\n{result_table(results)}\n{sentence(results)}\n\nreport: {os.path.relpath(page)}")
    return page


def _phantoms(chain: Chain, settings: DemoConfig) -> tuple[list[Path], Path]:
    """Write the synthetic cohort; returns its unlabelled and its labelled part."""
    flags = to_flags(settings.phantom)
    folder, _ = chain.stage("phantom", to_dict(settings.phantom), lambda path: _data_prep("phantom", str(path), *flags))
    return [folder / "unlabelled"], folder / "task"


def _prepare(chain: Chain, settings: DemoConfig, data: Sequence[Path], task: Path) -> Prepared:
    """Two stores, the plan that the task asks for, and shards cut for it; what cannot work is refused early."""

    def ingest(name: str, sources: Sequence[Path]) -> Path:
        flags = to_flags(settings.ingest)
        store, _ = chain.stage(
            name,
            [to_dict(settings.ingest), _listing(sources)],
            lambda path: _data_prep("ingest", *map(str, sources), str(path), *flags),
        )
        return store

    task_store = ingest("task", [task])
    finetune = fit_folds(settings.finetune, task_store)
    data_store = ingest("ingest", data)
    budget = str(settings.patch_voxels)
    plan_folder, _ = chain.stage("plan", budget, lambda path: _plan(task_store, budget, path))
    plan = plan_folder / "plan.json"
    flags = to_flags(settings.pack)
    shards, _ = chain.stage(
        "pack",
        to_dict(settings.pack),
        lambda path: _data_prep("pack", str(data_store), str(path), "--plan", str(plan), *flags),
    )
    pretrain = fit_blocks(settings.pretrain, load_json(Plan, plan))
    return Prepared(task_store, data_store, plan, shards, pretrain, finetune)


def _train(chain: Chain, settings: DemoConfig, ready: Prepared) -> tuple[Path, Path]:
    """Pretraining, then fine-tuning and its twin; returns both run folders."""

    def pretrain(run: Path) -> None:
        full = dataclasses.replace(ready.pretrain, shards=ready.shards, run=run)
        run_stage("pretrain", full, settings.cluster, run / "logs")

    trained, _ = chain.stage("pretrain", to_dict(ready.pretrain), pretrain)

    def finetune(run: Path) -> None:
        full = dataclasses.replace(ready.finetune, store=ready.task_store, plan=ready.plan, checkpoint=trained, run=run)
        run_stage("finetune", full, settings.cluster, run / "logs")

    tuned, _ = chain.stage("finetune", to_dict(ready.finetune), finetune)
    return trained, tuned


def _plan(store: Path, budget: str, folder: Path) -> object:
    folder.mkdir(parents=True, exist_ok=True)
    return _data_prep("plan", str(store), "--budget-voxels", budget, "--out", str(folder / "plan.json"))


def _data_prep(*arguments: str) -> object:
    """Run one command of data_prep and return the JSON line that it ends with."""
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise DataError(f"data_prep {arguments[0]} must end with status 0, not {done.returncode}; see the lines above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _listing(roots: Sequence[Path]) -> str:
    """Hash of names, sizes and times of all files, so that changed input is read again."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            known = path.stat()
            digest.update(f"{path.relative_to(root)}|{known.st_size}|{known.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
