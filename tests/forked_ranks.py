"""Ranks of tests/engine/worker_train.py, forked from a server that has imported torch once; killed where one likes."""

import json
import multiprocessing
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

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests" / "engine" / "worker_train.py"
MUON = "deepspeed.runtime.zero.muon.muon_optimizer"
STEPS, EVERY = 9, 3
POINTS = ("forward", "update", "snapshot", "half a file", "file", "note", "state", "manifest", "rename", "renamed")
"""Moments at which a rank kills itself, next to `time`: from outside, at any moment."""
PATIENCE_S = 120.0


def start_server() -> Any:
    """A forkserver with everything imported."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        # The last two are imported by the first optimizer and the first engine.
        ["voxscale.engine.loop", "voxscale.engine.deepspeed", "voxscale.cli", "torch._dynamo", MUON]
    )
    return context


def rank_main(
    rank: int,
    world: int,
    port: int,
    arguments: list[str],
    kill: tuple[str, int] | None,
    out: str,
    script: str = str(WORKER),
) -> None:
    """One rank, in its own process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    with open(out, "w") as text:
        os.dup2(text.fileno(), 1)
        os.dup2(text.fileno(), 2)
    if kill is not None:
        arm(*kill)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))  # as Python does for a script
    runpy.run_path(script, run_name="__main__")


def arm(point: str, count: int) -> None:
    """Have this process killed at the `count`-th time it comes to a point."""
    import torch

    from voxscale.engine import pieces, saver

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
            around(saver._Writing, "_write_own", before=False)
        case "state":
            around(saver, "write_text", before=False, only="state.json")
        case "manifest":
            around(saver, "write_text", before=False, only="manifest.json")
        case "rename":
            around(saver, "_moved_away", before=False)
        case "renamed":
            around(saver.Saver, "_prune", before=True)


def together(context: Any, script: Path, world: int, arguments: list[str], out: Path) -> None:
    """Run another worker to its end as so many ranks; what they say goes into files whose names start with `out`."""
    port, outs = free_ports(1)[0], [f"{out}-{rank}.txt" for rank in range(world)]
    ranks = [
        context.Process(target=rank_main, args=(r, world, port, arguments, None, outs[r], str(script)))
        for r in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE_S)
        rank.kill()
        rank.join()
    bad = [Path(outs[r]).read_text()[-3000:] for r, rank in enumerate(ranks) if rank.exitcode != 0]
    assert not bad, "\n".join(bad)


def launch(
    context: Any, run: Path, world: int, stage: str, kill: dict[int, tuple[str, int]], after: float = -1
) -> bool:
    """Run to the last step, or until a rank dies, when the others are killed as a launcher would do.

    Args:
        context: From `start_server`.
        run: Run folder.
        world: Ranks.
        stage: ZeRO stage.
        kill: Point and count for each rank that is to die there.
        after: Seconds after the first line of metrics until a kill of all ranks; negative for never.

    Returns:
        Whether all ranks ended well.
    """
    port = free_ports(1)[0]
    run.mkdir(exist_ok=True)
    arguments = [str(run), str(STEPS), str(STEPS), stage, "fp32", "adamw", "4"]
    outs = [str(run / f"out-{r}.txt") for r in range(world)]
    ranks = [
        context.Process(target=rank_main, args=(r, world, port, arguments, kill.get(r), outs[r])) for r in range(world)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + PATIENCE_S
    began = None
    lines = count_lines(run)
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
        if began is None and count_lines(run) > lines:
            began = time.monotonic()
        due = after >= 0 and began is not None and time.monotonic() - began > after
        if due or any(rank.exitcode not in (None, 0) for rank in ranks):
            break
        time.sleep(0.005)
    for rank in ranks:
        rank.kill()
        rank.join()
    return all(rank.exitcode == 0 for rank in ranks)


def count_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill_and_go_on(context: Any, whole: Path, run: Path, stage: str, number: int, world: int = 2) -> dict[str, Any]:
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
        ended = launch(context, run, world, stage, {}, after=draw.uniform(0, 0.6))
    else:
        ended = launch(context, run, world, stage, {victim: (point, count)})
    found = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    again = launch(context, run, world, stage, {})
    same = again and losses(run) == losses(whole) and len(losses(run)) == STEPS
    same = same and (run / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()
    if same:
        shutil.rmtree(run)
    return {"point": point, "count": count, "rank": victim, "killed": not ended, "found": found, "same": same}
