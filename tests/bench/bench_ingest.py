"""Ingest of the real NIfTI volumes against nnU-Net's preprocessing of the same files: `make bench ONLY=ingest`.

Ours does all that a normal ingest does: discovery, hashes, a process for each
volume, exact storage, rules, privacy gate, measurement, descriptor, pyramid,
picture, ledger, index, search for duplicates. Theirs reads with SimpleITK,
crops to what is not zero, normalises and saves, with the target spacing of
each file its own, so that nothing is resampled; no labels on either side. Both
run on one core; CPU seconds are of the process and all its children. Goal: at
least twice the volumes per second of CPU, and never more than four raw
volumes in memory per worker.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from multiprocessing import forkserver
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import blosc2  # after the line above, which it reads once
import nibabel as nib
import numpy as np
from harness import ROOT, finish
from ingest_memory import cut_of, file_case, limit, made, watched
from nnunet_preprocess import Preprocess

from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from voxscale.io.isolate import run_isolated

GOAL, MOST_VOLUMES = 2.0, 4.0
ROUNDS = 3
MADE = {
    "int16": ((400, 512, 512), "int16", (1.0, 0.7, 0.7)),
    "uint8": ((200, 512, 512), "uint8", (1.0, 0.7, 0.7)),
    "float32": ((100, 512, 512), "float32", (1.0, 0.7, 0.7)),
    "coarse": ((30, 512, 512), "int16", (6.0, 0.7, 0.7)),
    "slices_4mm": ((80, 512, 512), "int16", (4.0, 0.98, 0.98)),
    "whole_body_4mm": ((400, 128, 128), "int16", (4.0, 4.0, 4.0)),
    "whole_body_4mm_uint8": ((400, 128, 128), "uint8", (4.0, 4.0, 4.0)),
}
"""Scans that are made: shape and spacing along z, y, x, and number type."""
DATA = ROOT.parent / "shared" / "data"
TICKS = os.sysconf("SC_CLK_TCK")


def sources() -> list[Path]:
    """The folders that both sides read."""
    tasks = sorted(path for path in (DATA / "labelled").iterdir() if path.is_dir())
    return [DATA / "ct_unlabelled", DATA / "mr_unlabelled", *tasks]


def images(root: Path) -> list[Path]:
    """The images of one folder."""
    return sorted((root / "images" if (root / "images").is_dir() else root).glob("*.nii.gz"))


def cpu_seconds() -> float:
    """Of this process, its children, and the server of reader processes with all that it has forked."""
    own = os.times()
    server = forkserver._forkserver._forkserver_pid
    if server is None:
        return own.user + own.system + own.children_user + own.children_system
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    forked = sum(int(field) for field in fields[11:15]) / TICKS
    return own.user + own.system + own.children_user + own.children_system + forked


def timed(work: Callable[[Path], object]) -> tuple[float, float]:
    """CPU and wall seconds of work that writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = cpu_seconds(), time.perf_counter()
        work(Path(folder))
        return cpu_seconds() - cpu, time.perf_counter() - wall


def ours(roots: list[Path], folder: Path) -> int:
    """Volumes accepted."""
    settings = IngestConfig(labels="ignore", workers=1, subject=r"(.+)")
    return ingest(roots, folder / "store", settings).accepted


def bare(files: list[Path], folder: Path) -> None:
    """Read with nibabel and write as blosc2 in the file's number type: no checks at all."""
    for number, file in enumerate(files):
        voxels = np.asarray(nib.load(file).dataobj)
        cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}
        blosc2.asarray(np.ascontiguousarray(voxels.T), urlpath=str(folder / f"{number}.b2nd"), cparams=cparams)


def memory(files: list[Path]) -> dict[str, dict[str, float]]:
    """Of the largest real scans and of some that are made: memory of their reader beyond an idle one's."""
    out: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scans = {f"real_{n + 1}": file for n, file in enumerate(sorted(files, key=decoded, reverse=True)[:3])}
        for name, (shape, dtype, spacing) in MADE.items():
            scans[name] = Path(folder) / f"{name}.nii"
            made(scans[name], shape, dtype, spacing)
        for name, file in scans.items():
            cut = cut_of(file, Path(folder) / f"{name}_small.nii")
            told = run_isolated(watched, (file_case(file), file_case(cut), f"{folder}/{name}"), 600.0, 16.0)
            raw, most = decoded(file), told["peak"] - told["idle"]
            out[name] = {
                "raw_mb": round(raw / 1e6, 1),
                "peak_mb": round(most / 1e6, 1),
                "raw_volumes": round(most / raw, 2),
                "limit_mb": round(limit(raw, nib.load(file).header.get_data_dtype().itemsize > 2) / 1e6, 1),
            }
    return out


def decoded(file: Path) -> int:
    """Bytes of a file's voxels as they are decoded from it."""
    header = nib.load(file).header
    return int(np.prod(header.get_data_shape())) * header.get_data_dtype().itemsize


def main() -> None:
    """Measure both in turn, three times."""
    # Of `python -m data_prep` readers import nothing; of a script they would import all that stands above.
    sys.modules["__main__"].__spec__ = ModuleSpec("bench_ingest.__main__", None)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore")
    roots = sources()
    files = [file for root in roots for file in images(root)]
    ct = ["ct" in str(file.relative_to(DATA)).split("/")[-2 if "unlabelled" in str(file) else -3] for file in files]
    theirs = Preprocess(files, ct)
    timed(lambda folder: theirs(folder))
    found: list[int] = []
    timed(lambda folder: found.append(ours(roots[:1], folder)))  # starts the server that readers are forked from
    rows: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": [], "bare": []}
    for _ in range(ROUNDS):
        rows["ours"].append(timed(lambda folder: found.append(ours(roots, folder))))
        rows["theirs"].append(timed(theirs))
        rows["bare"].append(timed(lambda folder: bare(files, folder)))
    assert set(found[1:]) == {len(files)}, found
    cells = {
        name: {
            "cpu_s": round(statistics.median(cpu for cpu, _ in times), 3),
            "wall_s": round(statistics.median(wall for _, wall in times), 3),
            "volumes_per_cpu_s": round(len(files) / statistics.median(cpu for cpu, _ in times), 2),
        }
        for name, times in rows.items()
    }
    pairs = zip(rows["theirs"], rows["ours"], rows["bare"], strict=True)
    ratios = [(t[0] / o[0], t[1] / o[1], b[0] / o[0]) for t, o, b in pairs]
    ratio, wall, to_bare = (statistics.median(column) for column in zip(*ratios, strict=True))
    held = memory(files)
    most = max(row["raw_volumes"] for row in held.values())
    finish(
        "ingest",
        ratio,
        GOAL,
        ratio >= GOAL and most <= MOST_VOLUMES and all(row["peak_mb"] <= row["limit_mb"] for row in held.values()),
        wall_ratio=round(wall, 3),
        ratio_to_bare=round(to_bare, 3),
        volumes=len(files),
        cells=cells,
        rounds=json.loads(json.dumps(ratios)),
        memory=held,
        memory_goal=MOST_VOLUMES,
    )


if __name__ == "__main__":
    main()
