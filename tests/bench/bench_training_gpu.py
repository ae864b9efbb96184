"""Training from shards on one GPU: `make bench ONLY=training_gpu`; anywhere small: add `--small`.

STU-Net-B and -L at 128^3, batch 2, bf16, by `python -m pretrain` from the shards that BENCH_SHARDS names: samples/s,
the shares of time that steps wait for data and that graph matching's solver takes, MFU and memory, as the run's own
metrics say them. Three objectives together (Volume Fusion, graphs of crops, graphs of patches), then masked
reconstruction and part-whole alone. `ratio` is the larger wait of the two mixtures over its goal of 0.03. BENCH_CELLS
chooses cells by the start of their names.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, finish

GOAL_WAIT = 0.03
SMALL = "--small" in sys.argv
CUDA = torch.cuda.is_available()
OPTIONS = """
    --engine.zero-stage 1 --loop.log-every 5 --loop.steps 100000 --loop.checkpoint-every 100000 --loop.keep 2
    --tracker.no-wandb --objective.measure-every 0
"""
MIXED = """
    --objective.weights.volume-fusion 1 --objective.weights.graph-matching 1 --objective.weights.patch-matching 1
    --objective.graph-matching.mode sub_volume --objective.graph-matching.crops 2 --objective.graph-matching.group 4
    --objective.graph-matching.k 2 --objective.graph-matching.spatial-k 1
"""
MASKED = "--objective.weights.volume-fusion 0 --objective.weights.masked-reconstruction 1"
WHOLE = "--objective.weights.volume-fusion 0 --objective.weights.part-whole 1"
LESS = "--model.checkpoint-stages 0 1 --model.keep-convolutions"
CELLS: dict[str, tuple[str, str, int]] = {
    "mixture B": ("stunet_b", MIXED, 2),
    "mixture L": ("stunet_l", MIXED + LESS, 2),
    "masked B": ("stunet_b_masked", MASKED, 2),
    "part-whole B": ("stunet_b", WHOLE, 2),
}
"""Preset, options, batch, in the order of their worth."""


def training(preset: str, options: str, batch: int, lines: int = 4) -> dict[str, Any]:
    """Metrics of a run that reads shards, without its first lines; it is ended when there are enough."""
    shards = os.environ.get("BENCH_SHARDS", "")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "pretrain",
            f"configs/pretrain.py:{preset}",
            "--shards",
            shards,
            "--run",
            str(run),
        ]
        command += [
            *OPTIONS.split(),
            "--loop.batch",
            str(batch),
            "--loader.workers",
            "2" if SMALL else "12",
            *options.split(),
        ]
        if SMALL:
            command += ["--model.width", "2", "--model.depth", "1", "--loop.log-every", "1"]
        with (Path(folder) / "log").open("w") as log:
            began = time.monotonic()
            worker = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            rows: list[dict[str, Any]] = []
            limit = float(os.environ.get("BENCH_RUN_SECONDS", "60")) * (10 if SMALL else 1)
            while worker.poll() is None and time.monotonic() - began < limit and len(rows) < lines:
                time.sleep(0.5)
                metrics = run / "metrics.jsonl"
                text = metrics.read_text() if metrics.exists() else ""
                rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
            worker.kill()
            worker.wait()
        if len(rows) < 2:
            return {"failed": (Path(folder) / "log").read_text()[-1200:] or "time"}
    kept = rows[1:] if len(rows) < 4 else rows[2:]
    names = ("samples_per_s", "data_wait", "solver_share", "compute", "tflops", "mfu", "gpu_gb", "rss_gb", "loss")
    found = {name: round(statistics.median(row[name] for row in kept), 4) for name in names if name in kept[0]}
    return found | {"batch": batch, "lines": len(rows), "first_line_s": rows[0]["seconds"]}


def main() -> None:
    """Measure, printing a line for each cell as it comes."""
    if not CUDA and not SMALL:
        sys.exit("error: a CUDA device must be there; run it anywhere with --small")
    only = os.environ.get("BENCH_CELLS", "").split(",")
    found: dict[str, dict[str, Any]] = {}
    for name, cell in CELLS.items():
        if name.startswith(tuple(only)):
            found[name] = training(*cell)
            print(json.dumps({"cell": name} | found[name]), flush=True)
    ran = all("failed" not in one for one in found.values())
    if SMALL:
        print(json.dumps({"name": "training_gpu small", "ran": ran}))
        sys.exit(0 if ran else 1)
    waits = [one.get("data_wait", 1.0) for name, one in found.items() if name.startswith("mixture")]
    ratio = max(waits, default=1.0) / GOAL_WAIT
    finish("training_gpu", ratio, 1.0, ran and ratio <= 1, cells=found, gpu=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
