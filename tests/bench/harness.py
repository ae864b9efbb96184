"""What every benchmark shares: alternating timings, one JSON line, one result file with machine and commit."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.machine import describe  # noqa: E402  # the line above makes it importable
from voxscale.files import write_json  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "bench"


def alternate(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """CPU seconds of two functions, called in turn so that a drifting machine hits both alike; round one warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for function, kept in zip((ours, theirs), times, strict=True):
            began = time.process_time()
            function()
            if number:
                kept.append(time.process_time() - began)
    return times


def paired_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios of neighbouring timings."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def finish(name: str, ratio: float, goal: float, ok: bool, **more: Any) -> None:
    """Write `docs/results/bench/<name>.json` and print its content as the last line."""
    result = {"name": name, "ratio": round(ratio, 4), "goal": goal, "ok": ok, **more, "machine": describe()}
    write_json(RESULTS / f"{name}.json", result)
    print(json.dumps(result))
