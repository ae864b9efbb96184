"""Does it help, and which of them? Pretext tasks against each other and against scratch, over few labelled cases.

A table of cells, each one training stage that is done once: pretext task, seed,
number of labelled subjects. The order is such that a study that is stopped holds
all seeds and pretext tasks of the first numbers of subjects.
"""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from finetune.config import Arm, FinetuneConfig
from finetune.folds import split
from launch.chain import check_folders
from launch.cluster import Cluster
from launch.fit import fit_folds, fit_pretraining
from launch.machine import describe
from launch.runners import Runner, make_runners
from launch.schedule import Job, Schedule
from launch.stages import Chain, Done, ingest, plan_and_pack
from launch.study_table import SCRATCH, Study, write_study
from pretrain.config import PretrainConfig
from voxscale.config import config, config_hash, load_json, require, to_dict
from voxscale.errors import DataError, TrainingError
from voxscale.files import locked, sha256_file, write_json
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
        subjects: Numbers of labelled subjects that a training sees, most important first; those that the task is too
            small for are left out.
        seeds: Of pretraining and fine-tuning alike.
        control: Name of the pretext that has nothing to learn, with which the others are compared too; "" for none.
        spacing: Spacing along z, y, x in mm to train at; None for the task's median.
        cluster: Where each cell runs.
    """

    ingest: IngestConfig
    patch_voxels: int
    pack: PackConfig
    pretexts: tuple[Pretext, ...]
    finetune: FinetuneConfig
    subjects: tuple[int, ...] = (2, 4, 8, 16)
    seeds: tuple[int, ...] = (0, 1, 2)
    control: str = ""
    spacing: tuple[float, float, float] | None = None
    cluster: Cluster = Cluster()

    def __post_init__(self) -> None:
        """Check that the parts can be compared; raises `ConfigError`."""
        names = [one.name for one in self.pretexts]
        require(len(names) == len(set(names)) > 0, "study.pretexts", "one or more of different names", names)
        require(self.control in ("", *names), "study.control", "the name of a pretext or empty", self.control)
        models = {json.dumps(to_dict(one.pretrain)["model"], sort_keys=True) for one in self.pretexts}
        require(len(models) == 1, "study.pretexts", "of one backbone", f"{len(models)} different ones")
        apart = len(self.subjects) == len(set(self.subjects)) > 0 and min(self.subjects) > 0
        require(apart, "study.subjects", "one or more different numbers above 0", self.subjects)
        require(len(self.seeds) == len(set(self.seeds)) > 0, "study.seeds", "one or more different numbers", self.seeds)


@dataclass(frozen=True, slots=True)
class Ready:
    """What all cells share.

    Attributes:
        name: Of the task.
        task: Store of labelled scans.
        plan: Folder with `plan.json`.
        shards: Bricks of the unlabelled scans.
    """

    name: str
    task: Done
    plan: Done
    shards: Done


@dataclass(frozen=True, slots=True)
class Cells:
    """Makes the jobs of a table.

    Attributes:
        chain: Remembers what is done.
        settings: Config of the study.
        ready: Data.
        finetune: Fine-tuning that fits the task.
        found: Takes in what is done.
        runs: Pretrainings that are done, by job.
    """

    chain: Chain
    settings: StudyConfig
    ready: Ready
    finetune: FinetuneConfig
    found: Study
    runs: dict[str, Done]

    def pretraining(self, one: Pretext, seed: int) -> Job:
        """Pretrain one row of the table with one seed."""
        plan = load_json(Plan, self.ready.plan.folder / "plan.json")
        fitted = dataclasses.replace(fit_pretraining(one.pretrain, plan), seed=seed)
        name = f"pretrain-{one.name}-{seed}"

        def work(runner: Runner) -> None:
            def train(run: Path) -> None:
                runner.run(
                    "pretrain", dataclasses.replace(fitted, shards=self.ready.shards.folder, run=run), run / "logs"
                )

            self.runs[name] = self.chain.stage(name, to_dict(fitted), train, after=[self.ready.shards])
            self.found.pretrained(one.name, self.chain.seconds[name], fitted.loop.steps, fitted.loop.batch)

        return Job(name, work)

    def cell(self, start: str, count: int, seed: int) -> Job:
        """Train and test one row on every fold; from scratch nothing but the backbone's shape is taken."""
        arm: Arm = "scratch" if start == SCRATCH else "pretrained"
        own = dataclasses.replace(self.finetune, seeds=(seed,), subjects=count, arms=(arm,))
        if start == SCRATCH:
            own = dataclasses.replace(own, backbone=self.settings.pretexts[0].pretrain.model)
        name = f"tune-{start}-{count}-{seed}"
        needs = () if start == SCRATCH else (f"pretrain-{start}-{seed}",)
        paths = {"store": self.ready.task.folder, "plan": self.ready.plan.folder / "plan.json"}

        def work(runner: Runner) -> None:
            runs = [self.runs[need] for need in needs]
            given = paths | ({"checkpoint": runs[0].folder} if runs else {})

            def train(run: Path) -> None:
                runner.run("finetune", dataclasses.replace(own, **given, run=run), run / "logs")

            done = self.chain.stage(name, to_dict(own), train, after=[self.ready.task, self.ready.plan, *runs])
            results = json.loads((done.folder / "results.json").read_text())
            self.found.classes = {str(key): str(value) for key, value in results["classes"].items()}
            self.found.add(count, start, seed, results["cases"], self.chain.seconds[name])

        return Job(name, work, needs)


def study(
    settings: StudyConfig,
    data: Sequence[Path],
    task: Path | None,
    out: Path,
    *,
    prepared: Path | None = None,
    prepare: Path | None = None,
    jobs: int = 1,
    seconds: float | None = None,
) -> Path | None:
    """Fill the table; run again, it goes on where it was.

    Args:
        settings: Config of every part.
        data: Folders of unlabelled scans.
        task: Folder with labelled scans.
        out: Where everything goes.
        prepared: Task and shards that were made before, instead of `data` and `task`.
        prepare: Make such a folder and train nothing.
        jobs: Trainings at a time.
        seconds: Time limit of the trainings; the table is made of what is done, and says what is missing.

    Returns:
        Path of the page; beside it lie `study.json` and `study.md`.

    Raises:
        ConfigError: If a folder is not there, or the task is too small for every number of subjects.
        TrainingError: If trainings failed, once all others are done and the table is written.
        VoxScaleError: Whatever stops a stage, in one line.
    """
    out = out.resolve()
    require(jobs >= 1, "jobs", "at least 1", jobs)
    require((prepared is None) == (task is not None), "prepared", "given instead of data and task", prepared)
    if prepared is None:
        check_folders(data, task, out)
    with locked(out):
        chain = Chain(out)
        ready = _ready(chain, settings, data, task, prepared)
        if prepare is not None:
            keep_prepared(ready, prepare)
            return None
        return _fill(chain, settings, ready, jobs, seconds)


def _fill(chain: Chain, settings: StudyConfig, ready: Ready, jobs: int, seconds: float | None) -> Path:
    finetune = fit_folds(settings.finetune, ready.task.folder)
    subjects = fit_subjects(settings, ready.task.folder, finetune.folds)
    found = Study(
        task=ready.name,
        steps=finetune.loop.steps,
        batch=finetune.loop.batch,
        rate=finetune.optim.lr,
        folds=finetune.folds,
        machine=describe(),
        jobs=jobs,
        control=settings.control,
    )
    cells = Cells(chain, settings, ready, finetune, found, {})
    wanted = [cells.pretraining(one, seed) for one in settings.pretexts for seed in settings.seeds]
    starts = [SCRATCH, *(one.name for one in settings.pretexts)]
    wanted += [cells.cell(start, count, seed) for count in subjects for start in starts for seed in settings.seeds]
    schedule = Schedule(wanted, make_runners(settings.cluster, jobs))
    try:
        schedule.run(seconds)
    finally:
        found.missing = dict(schedule.missing)
        page = write_study(chain.out, found)
    print((chain.out / "study.md").read_text())
    if failed := schedule.failed:
        name, reason = next(iter(failed.items()))
        raise TrainingError(f"{len(failed)} of {len(wanted)} trainings failed, the first is {name}: {reason}")
    return page


def fit_subjects(settings: StudyConfig, task: Path, folds: int) -> tuple[int, ...]:
    """Numbers of labelled subjects that every fold can give; raises `ConfigError` if there are none."""
    entries = open_store(task).entries.items()
    people = {case: entry.subject for case, entry in entries if entry.label and not entry.planar}
    tests = split(people, folds)
    left = min(len(set(people.values()) - {people[case] for case in test}) for test in tests)
    subjects = tuple(n for n in settings.subjects if n <= left)
    require(
        len(subjects) > 0, "study.subjects", f"at most the {left} that a fold of the task leaves", settings.subjects
    )
    if dropped := [n for n in settings.subjects if n > left]:
        log.info("study: no cells of %s subjects, as a fold leaves %d", ", ".join(map(str, dropped)), left)
    return subjects


def _ready(
    chain: Chain, settings: StudyConfig, data: Sequence[Path], task: Path | None, prepared: Path | None
) -> Ready:
    if prepared is not None:
        return take_prepared(prepared.resolve())
    assert task is not None  # as `study` checked
    return _prepare(chain, settings, [path.resolve() for path in data], task.resolve())


def _prepare(chain: Chain, settings: StudyConfig, data: Sequence[Path], task: Path) -> Ready:
    labelled = ingest(chain, "task", [task], settings.ingest)
    folds = fit_folds(settings.finetune, labelled.folder).folds
    fit_subjects(settings, labelled.folder, folds)  # before the unlabelled scans are read, which takes longer
    unlabelled = ingest(chain, "ingest", data, dataclasses.replace(settings.ingest, labels="ignore"))
    plan, shards = plan_and_pack(
        chain, labelled, unlabelled, settings.patch_voxels, settings.pack, spacing=settings.spacing
    )
    return Ready(task.name, labelled, plan, shards)


def keep_prepared(ready: Ready, folder: Path) -> None:
    """Copy all that trainings read, for another machine: `task/`, `plan.json`, `shards/` and the task's name.

    Raises:
        DataError: If the folder is there already.
    """
    if folder.exists():
        raise DataError(f"{folder.name} must not be there yet; remove it, or give another folder", "exists")
    left_out = shutil.ignore_patterns(".lock", "thumbnails", "descriptor.bin")
    shutil.copytree(ready.task.folder, folder / "task", ignore=left_out)
    shutil.copytree(ready.shards.folder, folder / "shards", ignore=left_out)
    shutil.copy(ready.plan.folder / "plan.json", folder / "plan.json")
    write_json(folder / "prepared.json", {"task": ready.name})


def take_prepared(folder: Path) -> Ready:
    """What `keep_prepared` left; cells depend on its files.

    Raises:
        DataError: If it is no such folder.
    """
    file = folder / "prepared.json"
    if not file.is_file():
        raise DataError(f"{folder.name} must be a folder that a study with --prepare made", "not_prepared")
    known: Mapping[str, str] = json.loads(file.read_text())
    return Ready(
        name=str(known["task"]),
        task=Done(folder / "task", sha256_file(folder / "task" / "ledger.jsonl")),
        plan=Done(folder, config_hash(json.loads((folder / "plan.json").read_text()))),
        shards=Done(folder / "shards", sha256_file(folder / "shards" / "manifest.json")),
    )
