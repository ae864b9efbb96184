"""What a checkpoint costs a training of two ranks, against torch.save of the same state: `make bench ONLY=ckpt`.

For each of STU-Net-B and L: real steps of a real engine (ZeRO-1, for L ZeRO-2 to fit 24 GB; bf16, AdamW);
saves by `voxscale.engine.saver`, each followed by as many steps as it takes
until the checkpoint has its name, that is until it is flushed to disk. The cost
of a save is all time from its beginning until then beyond that of as many plain
steps, which are measured before and behind it. Against it: both ranks
torch.save their slices at once, on the same disk, without fsync; the slices
are views of flat buffers, which torch.save writes once and without a copy. Ratio: of the medians,
the worse size; the first save stands apart. `SIZES="B"` measures B alone, `SAVES=8` so many saves.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import ROOT, finish

GOAL = 0.1
SIZES = {"B": (32, 1, 1), "L": (64, 2, 2)}
"""Width, depth, ZeRO stage."""


def rank_main(size: str, folder: Path, saves: int) -> None:
    """One rank: train, save, and on rank 0 print what it took."""
    import resource

    import torch

    from voxscale import dist
    from voxscale.engine.checkpoint import Position, folder_of
    from voxscale.engine.config import EngineConfig, LoopConfig, OptimConfig
    from voxscale.engine.deepspeed import start_engine
    from voxscale.engine.optim import moment_names
    from voxscale.engine.run import first_weights
    from voxscale.engine.saver import Saver
    from voxscale.engine.state import pieces
    from voxscale.models.build import build
    from voxscale.models.stunet import STUNetConfig

    torch.set_num_threads(1)
    dist.start()
    width, depth, stage = SIZES[size]
    model = build(STUNetConfig(width=width, depth=depth, classes=5, heads=1))
    count = sum(p.numel() for p in model.parameters())
    optim = OptimConfig(lr=1e-4)
    engine = start_engine(model, first_weights(model, 0), EngineConfig(zero_stage=stage), optim, 1)
    images = torch.randn(1, 1, 64, 32, 32).bfloat16()

    def step() -> None:
        engine.backward(sum(out.float().square().mean() for out in engine(images)))
        engine.step()
        dist.total([0.0])

    def durable(number: int) -> bool:
        return bool(dist.from_rank_0("yes" if folder_of(folder, number).is_dir() else ""))

    def plain(steps: int) -> list[float]:
        """Seconds of steps without a save; each asks whether a checkpoint is there, as those with a save do."""
        times = []
        for _ in range(steps):
            began = time.monotonic()
            durable(0)
            step()
            times.append(time.monotonic() - began)
        return times

    plain(2)
    ours, theirs, waits, until, counts, steps = [], [], [], [], [], []
    alone = folder / f"plain-{dist.rank()}.pt"
    with Saver(folder, engine, optim, LoopConfig(), {"model": size, "contract": ""}, Position()) as saver:
        for number in range(1, saves + 2):
            around = plain(3)
            waited = saver.waited
            dist.barrier()
            began = time.monotonic()
            saver.save(Position(number, number))
            taken = 0
            while not durable(number):
                step()
                taken += 1
            whole = time.monotonic() - began
            around += plain(3)
            ours.append(whole - taken * statistics.median(around))
            waits.append(saver.waited - waited)
            until.append(whole)
            counts.append(taken)
            steps += around
            dist.barrier()
            began = time.monotonic()
            torch.save({piece.key: piece.value for piece in pieces(engine, moment_names(optim))}, alone)
            dist.barrier()
            theirs.append(time.monotonic() - began)
            (their_bytes,) = dist.total([float(alone.stat().st_size)])
            alone.unlink()
        saver.finish()
    if dist.rank() == 0:
        newest = folder_of(folder, saves + 1)
        on_disk = sum(path.stat().st_size for path in newest.iterdir())
        row = {
            "parameters": count,
            "zero_stage": stage,
            "peak_gb_of_a_rank": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "step_s": round(statistics.median(steps), 3),
            "first_save_s": round(ours[0], 3),
            "extra_s": [round(t, 3) for t in ours[1:]],
            "wait_s": [round(t, 3) for t in waits[1:]],
            "durable_s": [round(t, 3) for t in until[1:]],
            "steps_until_durable": counts[1:],
            "torch_save_s": [round(t, 3) for t in theirs[1:]],
            "ratio": round(statistics.median(ours[1:]) / statistics.median(theirs[1:]), 3),
            "ratio_of_wait": round(statistics.median(waits[1:]) / statistics.median(theirs[1:]), 3),
            "torch_save_bytes": int(their_bytes),
            "bytes": on_disk,
            "bytes_of_12_per_parameter": round(on_disk / (12 * count), 5),
        }
        print(json.dumps(row), flush=True)
    dist.stop()
    os._exit(0)


def measure(size: str, saves: int) -> dict:
    folder = Path(tempfile.mkdtemp(dir=ROOT))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    try:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, size, str(folder), str(saves)],
                env=env | {"RANK": str(r), "LOCAL_RANK": str(r), "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for r in range(2)
        ]
        outs = [rank.communicate(timeout=3000)[0] for rank in ranks]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return json.loads(next(line for line in outs[0].splitlines() if line.startswith("{")))


def main() -> None:
    wanted = os.environ.get("SIZES", "B L").split()
    counts = {"B": 15, "L": 4}
    rows = {size: measure(size, int(os.environ.get("SAVES", counts[size]))) for size in counts if size in wanted}
    worst = max(row["ratio"] for row in rows.values())
    finish("ckpt", worst, GOAL, worst <= GOAL, ranks=2, sizes=rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rank_main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
