"""Compiled blocks for every family of backbones: `make bench ONLY=compile`.

Forward and backward as in `bench_layouts`, in the layout that the family has by default, plain against
compiled as the engine compiles (`engine.compile`), in bf16 and in fp32. Each cell is a
process of its own with an empty cache, one core, and a time limit; what it found until then is kept. Compiling
counts the CPU seconds of the first step with those of the processes that it starts. `ratio` is the share of cells that
were measured; `on` says whether compiling gains and has saved its own time within `PAYS_BACK` steps.
`FAMILIES="pctnet resnet50"` (presets) and `PRECISIONS="bf16"` measure these alone and keep the other rows.
"""

import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from bench_layouts import PRESETS, WIN, config_of, difference, halve, images, make, step
from harness import RESULTS, finish, paired_ratio
from torch._dynamo.utils import counters

from launch.machine import describe
from voxscale.engine.deepspeed import compile_blocks
from voxscale.engine.layout import CHANNELS_LAST, family

ROUNDS = 4
LIMIT_S = 360
"""Seconds of a cell by the clock."""
PAYS_BACK = 1000
"""Steps within which compiling must have saved its own time, as every start and every requeue compiles again."""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
AGREE = {"bf16": 3e-2, "fp32": 1e-4}
"""How far outputs and the first gradient may differ, in norms."""


def cpu_s() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def worker(preset: str, precision: str) -> None:
    """Compile, then step both in turn; prints what is known so far after each round."""
    torch.set_num_threads(1)
    dtype = DTYPES[precision]
    model = make(preset)
    last, side = CHANNELS_LAST[family(config_of(preset))], PRESETS[preset]
    other = copy.deepcopy(model)
    if precision == "bf16":
        halve(model), halve(other)
    found: dict[str, Any] = {"blocks": compile_blocks(other)}
    plain, variant = (step(m, images(m, side, last, dtype)) for m in (model, other))
    expected = plain()
    began, clock = cpu_s(), time.monotonic()
    outputs = variant()
    found |= {"compile_cpu_s": round(cpu_s() - began, 1), "compile_s": round(time.monotonic() - clock, 1)}
    found |= {"difference": difference(outputs, expected), "graphs": counters["stats"]["unique_graphs"]}
    found["breaks"] = sum(counters["graph_break"].values())
    times: dict[str, list[float]] = {"plain_s": [], "compiled_s": []}
    for number in range(ROUNDS + 1):
        for name, run in (("plain_s", plain), ("compiled_s", variant)):
            at = time.process_time()
            run()
            if number:  # the first round warms up
                times[name].append(round(time.process_time() - at, 4))
        if number:
            print(json.dumps(found | times | {"ratio": round(paired_ratio(*times.values()), 3)}), flush=True)


def cell(preset: str, precision: str) -> dict[str, Any]:
    """What a process of its own finds, or why it finds nothing."""
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        env |= {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, preset, precision]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        late = ""
        try:
            said, errors = started.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            started.kill()
            said, errors = started.communicate()
            late = f"not done within {LIMIT_S} s"
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1]) | ({"ended": late} if late else {})
    return {"failed": late or errors.strip().splitlines()[-1][:200]}


def decide(precision: str, row: dict[str, Any]) -> bool:
    """The rule: outputs agree, steps gain, and compiling pays back within `PAYS_BACK` steps."""
    if "ratio" not in row or row["difference"] > AGREE[precision] or row["ratio"] < WIN:
        return False
    gain = sum(row["plain_s"]) / len(row["plain_s"]) * (1 - 1 / row["ratio"])
    return gain * PAYS_BACK > row["compile_cpu_s"]


def main() -> None:
    """Fill the table, print each row as it comes, write the result."""
    if len(sys.argv) == 3:
        worker(*sys.argv[1:])
        return
    wanted = os.environ.get("FAMILIES", "").split() or list(PRESETS)
    kinds = os.environ.get("PRECISIONS", "").split() or list(DTYPES)
    path = RESULTS / "compile.json"
    kept = (len(wanted), len(kinds)) != (len(PRESETS), len(DTYPES)) and path.exists()
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["families"] if kept else {}
    for precision in kinds:
        for preset in wanted:
            row = cell(preset, precision)
            row |= {"on": decide(precision, row), "commit": describe()["commit"]}
            print(preset, precision, row, flush=True)
            rows.setdefault(family(config_of(preset)), {"preset": preset, "side": PRESETS[preset]})[precision] = row
            done = sum("ratio" in row.get(kind, {}) for row in rows.values() for kind in DTYPES)
            ratio = done / (len(PRESETS) * len(DTYPES))
            finish(
                "compile", ratio, 1.0, ratio == 1.0,
                families=rows, win=WIN, pays_back=PAYS_BACK, limit_s=LIMIT_S, threads=1,
            )  # fmt: skip


if __name__ == "__main__":
    main()
