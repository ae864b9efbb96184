"""Does it help, and which of them? Pretext tasks against each other and against scratch, over few labelled cases.

A table of cells, each one training stage that is done once: pretext task, seed,
number of labelled subjects. Seeds are the outer loop, so that a study that is
stopped holds whole tables of fewer seeds.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from finetune.config import Arm, FinetuneConfig
from finetune.folds import split
from launch.chain import check_folders
from launch.cluster import Cluster
from launch.fit import fit_blocks, fit_folds
from launch.machine import describe
from launch.stages import Chain, Done, ingest, plan_and_pack
from launch.study_table import SCRATCH, Study, write_study
from launch.submit import run_stage
from pretrain.config import PretrainConfig
from voxscale.config import config, load_json, require, to_dict
from voxscale.files import locked
from voxscale.patches import Plan
from voxscale.store import open_store

log = logging.getLogger("voxscale")


@config
class Pretext:
    """One row of the table.

    Attributes:
        name: Short, of small letters, digits and underscores.
        pretrain: How it is trained; shards, run folder and seed are filled in by the study.
    """

    name: str
    pretrain: PretrainConfig

    def __post_init__(self) -> None:
        """Check the name; raises `ConfigError`."""
        ok = re.fullmatch(r"[a-z][a-z0-9_]*", self.name) is not None and self.name != SCRATCH
        require(ok, "pretext.name", f"of small letters, digits and underscores and not {SCRATCH!r}", self.name)


@config
class StudyConfig:
    """Config of a study; paths in its parts are filled in.

    Attributes:
        ingest: Checks of both stores.
        patch_voxels: Most voxels of a patch.
        pack: Bricks and tars.
        pretexts: What is compared; all with the same backbone.
        finetune: Fine-tuning of every cell; its seeds, subjects and arms are filled in.
        subjects: Numbers of labelled subjects that a training sees; those that the task is too small for are left out.
        seeds: Of pretraining and fine-tuning alike.
        cluster: Where each cell runs.
    """

    ingest: IngestConfig
    patch_voxels: int
    pack: PackConfig
    pretexts: tuple[Pretext, ...]
    finetune: FinetuneConfig
    subjects: tuple[int, ...] = (2, 4, 8, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    cluster: Cluster = Cluster()

    def __post_init__(self) -> None:
        """Check that the parts can be compared; raises `ConfigError`."""
        names = [one.name for one in self.pretexts]
        require(len(names) == len(set(names)) > 0, "study.pretexts", "one or more of different names", names)
        models = {json.dumps(to_dict(one.pretrain)["model"], sort_keys=True) for one in self.pretexts}
        require(len(models) == 1, "study.pretexts", "of one backbone", f"{len(models)} different ones")
        rising = list(self.subjects) == sorted({n for n in self.subjects if n > 0})
        require(rising and len(self.subjects) > 0, "study.subjects", "rising numbers above 0", self.subjects)
        require(len(self.seeds) == len(set(self.seeds)) > 0, "study.seeds", "one or more different numbers", self.seeds)


@dataclass(frozen=True, slots=True)
class Ready:
    """What all cells share.

    Attributes:
        task: Store of labelled scans.
        plan: Folder with `plan.json`.
        shards: Bricks of the unlabelled scans.
        finetune: Fine-tuning that fits the task.
        subjects: Numbers of labelled subjects that every fold can give.
    """

    task: Done
    plan: Done
    shards: Done
    finetune: FinetuneConfig
    subjects: tuple[int, ...]


def study(settings: StudyConfig, data: Sequence[Path], task: Path, out: Path) -> Path:
    """Fill the table; run again, it goes on where it was.

    Args:
        settings: Config of every part.
        data: Folders of unlabelled scans.
        task: Folder with labelled scans.
        out: Where everything goes.

    Returns:
        Path of the page; beside it lie `study.json` and `study.md`.

    Raises:
        ConfigError: If a folder is not there, or the task is too small for every number of subjects.
        VoxScaleError: Whatever stops a stage, in one line.
    """
    out = out.resolve()
    check_folders(data, task, out)
    with locked(out):
        chain = Chain(out)
        ready = _prepare(chain, settings, [path.resolve() for path in data], task.resolve())
        found = Study(task=task.name, steps=ready.finetune.loop.steps, folds=ready.finetune.folds, machine=describe())
        page = out / "report" / "index.html"
        for seed in settings.seeds:
            _one_seed(chain, settings, ready, seed, found)
            page = write_study(out, found)  # after each seed: what is known is shown
            log.info("study: seed %d done; table in %s", seed, (out / "study.md").name)
    print((out / "study.md").read_text())
    return page


def _prepare(chain: Chain, settings: StudyConfig, data: Sequence[Path], task: Path) -> Ready:
    labelled = ingest(chain, "task", [task], settings.ingest)
    finetune = fit_folds(settings.finetune, labelled.folder)
    entries = open_store(labelled.folder).entries.items()
    people = {case: entry.subject for case, entry in entries if entry.label and not entry.planar}
    tests = split(people, finetune.folds)
    left = min(len(set(people.values()) - {people[case] for case in test}) for test in tests)
    subjects = tuple(n for n in settings.subjects if n <= left)
    require(
        len(subjects) > 0, "study.subjects", f"at most the {left} that a fold of the task leaves", settings.subjects
    )
    if dropped := [n for n in settings.subjects if n > left]:
        log.info("study: no cells of %s subjects, as a fold leaves %d", ", ".join(map(str, dropped)), left)
    unlabelled = ingest(chain, "ingest", data, dataclasses.replace(settings.ingest, labels="ignore"))
    plan, shards = plan_and_pack(chain, labelled, unlabelled, settings.patch_voxels, settings.pack)
    return Ready(labelled, plan, shards, finetune, subjects)


def _one_seed(chain: Chain, settings: StudyConfig, ready: Ready, seed: int, found: Study) -> None:
    """All cells of one seed: every pretraining, then every number of subjects in every arm."""
    plan = load_json(Plan, ready.plan.folder / "plan.json")
    runs: dict[str, Done] = {}
    for one in settings.pretexts:
        fitted = dataclasses.replace(fit_blocks(one.pretrain, plan), seed=seed)
        name = f"pretrain-{one.name}-{seed}"
        runs[one.name] = _pretrain(chain, name, fitted, ready, settings.cluster)
        found.pretrained(one.name, chain.seconds[name], fitted.loop.steps, fitted.loop.batch)
    first = runs[settings.pretexts[0].name]
    for count in ready.subjects:
        rows = {SCRATCH: _cell(chain, settings, ready, SCRATCH, first, count, seed, found)}
        for name, run in runs.items():
            rows[name] = _cell(chain, settings, ready, name, run, count, seed, found)
        found.add(count, seed, rows)


def _pretrain(chain: Chain, name: str, pretrain: PretrainConfig, ready: Ready, cluster: Cluster) -> Done:
    def work(run: Path) -> None:
        full = dataclasses.replace(pretrain, shards=ready.shards.folder, run=run)
        run_stage("pretrain", full, cluster, run / "logs")

    return chain.stage(name, to_dict(pretrain), work, after=[ready.shards])


def _cell(
    chain: Chain, settings: StudyConfig, ready: Ready, name: str, start: Done, count: int, seed: int, found: Study
) -> list[dict[str, Any]]:
    """Train and test on every fold; returns a row per case. From scratch only the backbone's shape is taken."""
    arm: Arm = "scratch" if name == SCRATCH else "pretrained"
    own = dataclasses.replace(ready.finetune, seeds=(seed,), subjects=count, arms=(arm,))

    def work(run: Path) -> None:
        full = dataclasses.replace(
            own,
            store=ready.task.folder,
            plan=ready.plan.folder / "plan.json",
            checkpoint=start.folder,
            run=run,
        )
        run_stage("finetune", full, settings.cluster, run / "logs")

    stage = f"tune-{name}-{count}-{seed}"
    done = chain.stage(stage, to_dict(own), work, after=[ready.task, ready.plan, start])
    found.took(name, count, chain.seconds[stage])
    results = json.loads((done.folder / "results.json").read_text())
    found.classes = {str(key): str(value) for key, value in results["classes"].items()}
    return results["cases"]
