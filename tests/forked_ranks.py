"""Ranks of tests/engine/worker_train.py, forked from a process that has imported torch, killed where one likes.

python forked_ranks.py KILL SCRIPT ...   (one rank; KILL: JSON, null or where it is to die)
"""

import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ports import free_ports
from warm_python import Process, start

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "engine" / "worker_train.py"
STEPS, EVERY = 9, 3
POINTS = ("forward", "update", "snapshot", "half a file", "file", "note", "state", "manifest", "rename", "renamed")
"""Moments at which a rank kills itself, next to `time`: from outside, at any moment."""
PATIENCE_S = 120.0


def start_ranks(
    script: Path, world: int, arguments: list[str], outs: list[Path], kill: dict[int, tuple[str, int]]
) -> list[Process]:
    """Start ranks that write what they say into files, each with its point and count of dying, if any."""
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": str(world)}
    env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ranks = []
    for rank, path in enumerate(outs):
        with path.open("w") as out:
            own = env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(start([__file__, json.dumps(kill.get(rank)), script, *arguments], own, out, out))
    return ranks


def arm(point: str, count: int) -> None:
    """Have this process killed at the `count`-th time it comes to a point."""
    import torch

    from voxscale.engine import pieces, saver, writing

    left = [count]

    def die(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, before: bool, only: str = "") -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **more: Any) -> Any:
            mine = only in str(args[0]) if only else True
            if before and mine:
                die()
            result = inner(*args, **more)
            if not before and mine:
                die()
            return result

        setattr(owner, name, wrapped)

    def half(path: Path, data: memoryview, size: int) -> None:
        left[0] -= 1
        path.write_bytes(data[: size // 2 if left[0] == 0 else size])
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    match point:
        case "forward":
            around(torch.nn.GroupNorm, "forward", before=True)
        case "update":
            around(torch.optim.AdamW, "step", before=False)
        case "snapshot":
            around(pieces.Image, "fill", before=False)
        case "half a file":
            pieces.write_past_cache = half
        case "file":
            around(pieces, "write_past_cache", before=False)
        case "note":
            around(writing.Writing, "_write_own", before=False)
        case "state":
            around(writing, "write_text", before=False, only="state.json")
        case "manifest":
            around(writing, "write_text", before=False, only="manifest.json")
        case "rename":
            around(writing, "is_there", before=False)
        case "renamed":
            around(saver.Saver, "_prune", before=True)


def together(script: Path, world: int, arguments: list[str], out: Path) -> None:
    """Run another worker to its end as so many ranks; what they say goes into files whose names start with `out`."""
    outs = [out.with_name(f"{out.name}-{rank}.txt") for rank in range(world)]
    ranks = start_ranks(script, world, arguments, outs, {})
    deadline = time.monotonic() + PATIENCE_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.02)
    end(ranks)
    bad = [path.read_text()[-3000:] for path, rank in zip(outs, ranks, strict=True) if rank.returncode != 0]
    assert not bad, "\n".join(bad)


def end(ranks: list[Process]) -> None:
    for rank in ranks:
        rank.kill()
        rank.wait()


def launch(
    run: Path,
    world: int,
    stage: str,
    kill: dict[int, tuple[str, int]],
    after: float = -1,
    steps: int = STEPS,
    batch: int = 4,
) -> bool:
    """Run to the last step, or until a rank dies, when the others are killed as a launcher would do.

    Args:
        run: Run folder.
        world: Ranks.
        stage: ZeRO stage.
        kill: Point and count for each rank that is to die there.
        after: Seconds after the first line of metrics until a kill of all ranks; negative for never.
        steps: Of the run.
        batch: Samples per step.

    Returns:
        Whether all ranks ended well.
    """
    run.mkdir(exist_ok=True)
    arguments = [str(run), str(steps), str(steps), stage, "fp32", "adamw", str(batch)]
    ranks = start_ranks(WORKER, world, arguments, [run / f"out-{r}.txt" for r in range(world)], kill)
    deadline = time.monotonic() + PATIENCE_S
    began = None
    lines = count_lines(run)
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        if began is None and count_lines(run) > lines:
            began = time.monotonic()
        due = after >= 0 and began is not None and time.monotonic() - began > after
        if due or any(rank.poll() not in (None, 0) for rank in ranks):
            break
        time.sleep(0.005)
    end(ranks)
    return all(rank.returncode == 0 for rank in ranks)


def count_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill_and_go_on(whole: Path, run: Path, stage: str, number: int, world: int = 2) -> dict[str, Any]:
    """One round: kill a run at a moment drawn from the round's number, start it again, compare with the undisturbed.

    Returns:
        The moment, where the run went on, and whether losses and weights have the same bits.
    """
    draw = random.Random(number)
    point = (*POINTS, "time", "time")[number % (len(POINTS) + 2)]
    rank0_only = point in ("state", "manifest", "rename", "renamed")
    victim = 0 if rank0_only else draw.randrange(world)
    count = draw.randint(1, STEPS) if point in ("forward", "update") else draw.randint(1, STEPS // EVERY)
    if point == "time":
        ended = launch(run, world, stage, {}, after=draw.uniform(0, 0.6))
    else:
        ended = launch(run, world, stage, {victim: (point, count)})
    found = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    again = launch(run, world, stage, {})
    same = again and losses(run) == losses(whole) and len(losses(run)) == STEPS
    same = same and (run / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()
    same = same and not list((run / "checkpoints").glob(".*"))  # nothing is left of the killed save
    if same:
        shutil.rmtree(run)
    return {"point": point, "count": count, "rank": victim, "killed": not ended, "found": found, "same": same}


if __name__ == "__main__":
    if (where := json.loads(sys.argv[1])) is not None:
        arm(*where)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
