"""Command line: `python -m launch pretrain|finetune|ingest|pack ... [--cluster ...] [overrides]`, `demo`, `study`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cluster import Cluster
from voxscale.cli import guarded
from voxscale.config import parse, require
from voxscale.folder import url_of
from voxscale.log import setup

USAGE = """python -m launch pretrain PRESET [--cluster local|slurm --nodes N --processes N ...] [overrides]
python -m launch finetune PRESET [--cluster local|slurm --nodes N --processes N ...] [overrides]
python -m launch ingest SRC [SRC ...] STORE --parts N [--cluster local|slurm ...] [flags of data_prep ingest]
python -m launch pack STORE SHARDS --plan PLAN --parts N [--cluster local|slurm ...] [flags of data_prep pack]
python -m launch demo [PRESET] --out FOLDER [--data FOLDER ... --task FOLDER] [overrides]
python -m launch study PRESET --out FOLDER --data FOLDER ... --task FOLDER [--jobs N] [--minutes N] [overrides]
python -m launch study PRESET --out FOLDER --prepared FOLDER ..., of data that ... --prepare FOLDER made

PRESET is FILE.py:FUNCTION, such as configs/pretrain.py:stunet_b; --help behind it lists every override."""


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed with one line that says why, 2 wrong usage."""
    setup()
    commands = {
        "pretrain": _stage,
        "finetune": _stage,
        "ingest": _parts,
        "pack": _parts,
        "demo": _demo,
        "study": _study,
    }
    if not arguments or arguments[0] not in commands:
        print(USAGE, file=sys.stderr)
        return 2
    return guarded(lambda: commands[arguments[0]](arguments[0], arguments[1:]))


def _stage(name: str, arguments: Sequence[str]) -> None:
    from finetune.config import FinetuneConfig
    from launch.submit import run_stage
    from pretrain.config import PretrainConfig

    own, rest = _split(arguments, {f.name.replace("_", "-") for f in dataclasses.fields(Cluster)})
    cluster = parse(Cluster, None, own, f"python -m launch {name}")
    preset = rest.pop(0) if rest and not rest[0].startswith("-") else None
    kind = PretrainConfig if name == "pretrain" else FinetuneConfig
    config = parse(kind, preset, rest, f"python -m launch {name} PRESET")
    run_stage("pretrain" if name == "pretrain" else "finetune", config, cluster, config.run / "logs")


def _parts(name: str, arguments: Sequence[str]) -> None:
    from data_prep import ingest, pack
    from data_prep.home import work_folder
    from data_prep.ids import private_folder
    from launch.parts import run_parts

    own, rest = _split(arguments, {"parts", "logs", *(f.name.replace("_", "-") for f in dataclasses.fields(Cluster))})
    parser = argparse.ArgumentParser(prog=f"python -m launch {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--logs", type=Path)
    known, own = parser.parse_known_args(own)
    cluster = parse(Cluster, None, own, f"python -m launch {name}")
    # A wrong command line is told here, not by each job.
    if name == "ingest":
        given = ingest.read_arguments(rest)
        store, remote = given.paths[-1], url_of(given.paths[-1]) is not None
        needed = remote and cluster.cluster == "slurm"  # else they would lie in this machine's own temporary folder
        require(
            known.logs is not None or not needed, "logs", "given where Slurm's jobs fill a store by URL", known.logs
        )
        # The command line names folders of patients.
        logs = (work_folder(store, given.work) if remote else private_folder(store.resolve())) / "logs"
    else:
        shards = pack.read_arguments(rest)[0].shards
        require(known.logs is not None or url_of(shards) is None, "logs", "given where shards have a URL", known.logs)
        logs = Path(f"{shards}.logs")
    run_parts("ingest" if name == "ingest" else "pack", rest, known.parts, cluster, known.logs or logs)


def _split(arguments: Sequence[str], names: set[str]) -> tuple[list[str], list[str]]:
    """Part the cluster's flags (and their values) from the stage's."""
    own: list[str] = []
    rest: list[str] = []
    into = rest
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].split("=")[0].removeprefix("no-")
            into = own if name in names else rest
        into.append(argument)
        if into is own and not argument.startswith("--"):
            into = rest  # every flag of the cluster takes one value at most
    return own, rest


def _demo(name: str, arguments: Sequence[str]) -> None:
    from launch.chain import DemoConfig, demo

    parser = argparse.ArgumentParser(prog=f"python -m launch {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("preset", nargs="?", default="configs/demo.py:phantoms")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--task", type=Path)
    known, rest = parser.parse_known_args(arguments)
    settings = parse(DemoConfig, known.preset, rest, f"python -m launch {name} PRESET")
    demo(settings, known.data, known.task, known.out)


def _study(name: str, arguments: Sequence[str]) -> None:
    from launch.study import StudyConfig, study

    parser = argparse.ArgumentParser(prog=f"python -m launch {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("preset")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--task", type=Path)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float)
    known, rest = parser.parse_known_args(arguments)
    settings = parse(StudyConfig, known.preset, rest, f"python -m launch {name} PRESET")
    seconds = None if known.minutes is None else 60 * known.minutes
    study(
        settings,
        known.data,
        known.task,
        known.out,
        prepared=known.prepared,
        prepare=known.prepare,
        jobs=known.jobs,
        seconds=seconds,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
