"""Runs of two ranks killed at 60 moments and started again: `make bench ONLY=resume`.

A round is identical if every loss and every bit of the final weights are those
of the undisturbed run. The moments: in a forward pass, in an update, after the
snapshot, in the middle of a file, between any two files of a checkpoint, before
and after its renaming, and at any time from outside. ZeRO stages 1, 2, 3 in turn.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness import ROOT, finish

sys.path.insert(0, str(ROOT / "tests"))

from forked_ranks import kill_and_go_on, launch

ROUNDS = 60
STAGES = ("1", "2", "3")


def main() -> None:
    began = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stage in STAGES:
            if not launch(root / f"whole-{stage}", 2, stage, {}):
                raise SystemExit((root / f"whole-{stage}" / "out-0.txt").read_text()[-2000:])
        for number in range(ROUNDS):
            stage = STAGES[(number + number // 12) % len(STAGES)]
            rows.append(kill_and_go_on(root / f"whole-{stage}", root / f"run-{number}", stage, number))
            if not rows[-1]["same"]:
                print(number, stage, rows[-1], (root / f"run-{number}" / "out-0.txt").read_text()[-600:], flush=True)
    same = sum(row["same"] for row in rows)
    killed = sum(row["killed"] for row in rows)
    points = Counter(row["point"] for row in rows if row["killed"])
    seconds = round(time.monotonic() - began, 1)
    finish(
        "resume",
        same / ROUNDS,
        1.0,
        same == ROUNDS and killed >= 50,
        rounds=ROUNDS,
        identical=same,
        killed=killed,
        kills=dict(points),
        ranks=2,
        stages=STAGES,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
