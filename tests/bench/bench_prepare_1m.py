"""What `report` and `pack` do before they read a voxel, for a store of a million scans: `make bench ONLY=prepare_1m`.

The rows are synthetic, those of `bench_index_1m`, with a ledger; no scan is
written. Each step runs in a fresh process: the choice of scans, the plan of
tars, the plan again with that of before (a second run), the hashes that tell
whether a tar must be made anew (of all scans, and of one of 64 workers), and
the report without pictures. `ratio` is the worst of these: seconds for each
scan of a million, over those of a hundred thousand; 1.5 at most, so that nothing
grows faster than what there is.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench_index_1m import rows
from harness import ROOT, finish

from voxscale.entry import Entry
from voxscale.index_write import write_index
from voxscale.ledger import LEDGER
from voxscale.store_root import create_store

COUNTS = (100_000, 1_000_000)
BEGIN = """
import json, resource, sys, tempfile, time
from pathlib import Path
from data_prep import report
from data_prep.bricks import PackConfig
from data_prep.choose import Digests, choose
from data_prep.groups import plan_groups, read_groups, write_groups
from voxscale.contract import InputContract
from voxscale.folder import open_folder
from voxscale.report.page import Section
from voxscale.store import open_store
path, config, told = Path(sys.argv[1]), PackConfig(), {}
def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
base = memory()
def took(name, work):
    began = time.process_time()
    result = work()
    told[name] = {"cpu_s": round(time.process_time() - began, 2), "peak_mb": round(memory() - base)}
    return result
"""
PACK = """
store, folder = open_store(path), open_folder(Path(sys.argv[2]))
chosen, _ = took("choose", lambda: choose(store, (96, 96, 96), InputContract(), config, None))
def plan():
    before = read_groups(folder, "hash")
    groups = plan_groups(before, chosen, config.shard_mb * 1e6, config.holdout)
    if groups != before:
        write_groups(folder, "hash", groups)
    return groups
groups = took("plan", plan)
assert took("plan_again", plan) == groups
took("digests_of_a_64th", lambda: Digests(store, [key for group in groups[::64] for key in group.volumes]))
took("digests", lambda: Digests(store, [key for group in groups for key in group.volumes]))
"""
REPORT = """
report.samples = lambda store, entries: Section("Samples", "")
took("report", lambda: report.write_report(path, None, Path(sys.argv[2]) / "page.html"))
"""
END = "print(json.dumps(told))"


def with_ledger(store: Path, count: int) -> Iterator[tuple[str, Entry]]:
    """The rows, each written to the ledger as it comes."""
    texts: dict[str | None, str] = {}
    with (store / LEDGER).open("w") as out:
        for key, entry in rows(count):
            if entry.study not in texts:
                texts[entry.study] = json.dumps(dataclasses.asdict(dataclasses.replace(entry, subject="@")))
            text = texts[entry.study].replace('"@"', f'"{entry.subject}"')
            head = f'{{"id": "{key}", "kind": "image", "status": "accepted", "rule": "", "reason": "", '
            out.write(f'{head}"part": 0, "notes": [], "thumbnail": true, "entry": {text}}}\n')
            yield key, entry


def measure(count: int) -> dict[str, dict[str, float]]:
    """CPU seconds and peak memory beyond imports, MB, after each step."""
    told: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        create_store(store, {})
        write_index(store, with_ledger(store, count))
        for steps in (PACK, REPORT):
            command = [sys.executable, "-c", BEGIN + steps + END, str(store), folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            told |= json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    """Measure both counts."""
    cells = {f"{count}": measure(count) for count in COUNTS}
    few, many = (cells[f"{count}"] for count in COUNTS)
    ratio = max(many[step]["cpu_s"] / few[step]["cpu_s"] for step in many) * COUNTS[0] / COUNTS[1]
    finish("prepare_1m", ratio, 1.5, ratio <= 1.5, cells=cells)


if __name__ == "__main__":
    main()
