"""The stages that a chain of commands is made of, each known by what it was made from and done once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import IngestConfig
from data_prep.pack import PackConfig
from launch.inputs import generation, list_files
from launch.machine import StageWatch
from voxscale import parent
from voxscale.config import config_hash, to_dict, to_flags
from voxscale.errors import DataError
from voxscale.files import sha256_file, write_json
from voxscale.ledger import LEDGER


@dataclass(frozen=True, slots=True)
class Done:
    """A finished stage.

    Attributes:
        folder: Where its files are.
        digest: Hash of its config and of the stages it was made from.
    """

    folder: Path
    digest: str


class Chain:
    """Runs stages and remembers which are done.

    Attributes:
        out: Folder of everything.
        seconds: Duration of each stage, of all attempts together, also of those done before.
        peak_gb: Largest memory of all processes together, over all stages, in GB.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}
        self.peak_gb = 0.0

    def stage(
        self, name: str, settings: object, work: Callable[[Path], object], after: Sequence[Done] = (), found: str = ""
    ) -> Done:
        """Run one stage, or find it done.

        Args:
            name: Of the stage.
            settings: Plain values that its result depends on.
            work: Does it, given the stage's own folder; goes on where it was cut off.
            after: Stages whose files it reads.
            found: Hash of files from outside; the folder stays the same when it changes, so that only
                what is new needs to be read.
        """
        base = config_hash({"stage": name, "settings": settings, "after": [done.digest for done in after]})
        digest = config_hash([base, found]) if found else base
        folder = self.out / f"{name}-{base[:8]}"
        marker = self.out / "done" / f"{name}-{digest}.json"
        running = marker.with_suffix(".running")
        if marker.is_file() and folder.is_dir():
            known = json.loads(marker.read_text())
            print(f"{name}: done before in {known['seconds']:.1f} s, skipped", file=sys.stderr, flush=True)
        else:
            with StageWatch(running) as watch:
                work(folder)
            known = watch.known()
            write_json(marker, known)
            running.unlink(missing_ok=True)
        self.seconds[name] = known["seconds"]
        self.peak_gb = max(self.peak_gb, known["peak_gb"])
        return Done(folder, digest)


def ingest(chain: Chain, name: str, sources: Sequence[Path], checks: IngestConfig) -> Done:
    """A store of the scans in some folders; files that are added or changed are all that is read later.

    What is made of it depends on the scans that it holds, not on when their files were written.
    """
    flags = to_flags(checks)
    files = list_files(sources)
    settings = config_hash([to_dict(checks), [str(source) for source in sources]])
    store = chain.stage(
        name,
        [settings, generation(chain.out, f"{name}-{settings}", files.named)],
        lambda path: data_prep("ingest", *sources, path, *flags),
        found=config_hash(list(files.dated)),
    ).folder
    return Done(store, config_hash([to_dict(checks), sha256_file(store / LEDGER)]))


def plan_and_pack(
    chain: Chain,
    labelled: Done,
    unlabelled: Done,
    patch_voxels: int,
    options: PackConfig,
    spacing: tuple[float, float, float] | None = None,
) -> tuple[Done, Done]:
    """The plan that a task asks for, and shards of the unlabelled scans cut for it, those of the task left out."""
    wanted = patch_voxels if spacing is None else [patch_voxels, list(spacing)]
    plan = chain.stage(
        "plan", wanted, lambda path: _plan(labelled.folder, patch_voxels, spacing, path), after=[labelled]
    )
    file = plan.folder / "plan.json"
    # What the plan says counts below, not what it was made from: another labelled case need not mean new shards.
    plan = Done(plan.folder, config_hash(json.loads(file.read_text())))
    flags = ["--plan", file, "--exclude", labelled.folder, *to_flags(options)]
    shards = chain.stage(
        "pack",
        to_dict(options),
        lambda path: data_prep("pack", unlabelled.folder, path, *flags),
        after=[unlabelled, plan],
        found=labelled.digest,
    )
    return plan, Done(shards.folder, sha256_file(shards.folder / "manifest.json"))


def _plan(store: Path, budget: int, spacing: tuple[float, float, float] | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    flags = [] if spacing is None else ["--spacing", *spacing]
    data_prep("plan", store, "--budget-voxels", budget, *flags, "--out", folder / "plan.json")


def data_prep(*arguments: object) -> None:
    """Run one command of data_prep; it ends when this process does."""
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {parent.VARIABLE: parent.current()},
        check=False,
    )
    if done.returncode:
        raise DataError(f"data_prep {arguments[0]} must end with status 0, not {done.returncode}; see the lines above")
