"""Checkpoints from rank to rank at every ZeRO stage, against DeepSpeed's own whole tensors.

python worker_slices.py FOLDER LABEL SOURCES [last]   (`-`: nothing to read, train two steps; last: weights that lie
channels-last)

At stage s `SOURCE-<(s + 1) % 4>` is read, and `LABEL-s` or, of several sources, `LABEL-SOURCE-s` written.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from safetensors.torch import load_file, save_file
from small import OPTIM, make
from torch import Tensor

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine import checkpoint, export
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EmaConfig, EngineConfig, LoopConfig
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.optim import moment_names
from voxscale.engine.saver import Saver
from voxscale.engine.state import pieces
from voxscale.engine.types import Engine
from voxscale.models.turned import turned_names

folder, label, sources, last = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), sys.argv[4:] == ["last"]
KINDS = ("weights", *moment_names(OPTIM))
LOOP = LoopConfig(steps=2, batch=6)


def whole(engine: Engine) -> dict[str, Tensor]:
    """Weights and moments as DeepSpeed puts them together itself; without ZeRO torch's own."""
    found: dict[str, Tensor] = {}
    turned = turned_names(engine.module)
    assert turned == ({"3.weight"} if last else set())
    for name, p in engine.module.named_parameters():
        for kind in KINDS:
            if engine.zero_optimization_stage() == 0:
                value = p.detach() if kind == "weights" else engine.optimizer.state[p][kind]
            elif kind == "weights":
                value = safe_get_full_fp32_param(p)
            else:
                value = safe_get_full_optimizer_state(p, kind)
            value = value.detach().float()
            if name in turned:
                assert value.shape == (5, 3, 3, 3, 6)
                value = value.permute(0, 4, 1, 2, 3)
            found[f"{kind}/{name}"] = value.clone(memory_format=torch.contiguous_format)
    return found


def put_together(engine: Engine) -> dict[str, Tensor]:
    """The same from our slices of all ranks, each element of which must be there once."""
    own = [(f"{p.kind}/{p.name}", p.shape, p.start, p.value.clone()) for p in pieces(engine, KINDS[1:])]
    turned = {f"{p.kind}/{p.name}" for p in pieces(engine, KINDS[1:]) if p.turned}
    turned = {name for rank in dist.gather(sorted(turned)) for name in rank}
    found: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for name, shape, start, value in (part for rank in dist.gather(own) for part in rank):
        count = torch.Size(shape).numel()
        flat = found.setdefault(name, torch.zeros(count))
        flat[start : start + value.numel()] = value.flatten()
        seen.setdefault(name, torch.zeros(count))[start : start + value.numel()] += 1
        found[name] = flat
    assert all(bool((counts == 1).all()) for counts in seen.values())
    shapes = {name: shape for rank in dist.gather(own) for name, shape, _, _ in rank}
    for name in turned:
        out, before, *kernel = shapes[name]
        found[name] = found[name].reshape(out, *kernel, before).movedim(-1, 1).contiguous()
    return {name: flat.reshape(shapes[name]) for name, flat in found.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    wrong = [name for name in a if not torch.equal(a[name], b[name])]
    assert not wrong, wrong


def averages_of(found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in found.items() if name.startswith("ema/"))


def two_steps(engine: Engine) -> None:
    for step in range(2):
        set_learning_rate(engine, OPTIM.lr)
        generator = torch.Generator().manual_seed(10 * step + dist.rank())
        x = torch.randn(2, 1, 6, 5, 4, generator=generator)
        loss = ((engine(x) - x.cumsum(-1)) ** 2).mean()
        engine.backward(loss)
        engine.step()


def go(stage: int, source: str) -> None:
    net = make("tiny")
    found = None
    if source != "-":
        origin = folder / f"{source}-{(stage + 1) % 4}"
        found = checkpoint.latest(origin)
        assert found is not None
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()  # nothing must be left of it
    own = {key: p.detach().clone() for key, p in net.named_parameters()}
    weights = own if found is None else checkpoint.load_weights(found)
    config = EngineConfig(zero_stage=stage, precision="fp32", clip=1.0, weights_last="on" if last else "off")
    engine = start_engine(net, weights, config, OPTIM, LOOP.batch // dist.world_size())
    teacher = Teacher(engine, EmaConfig(start=0.5, end=0.5), 2, make("tiny"))
    start = Position()
    if found is None:
        two_steps(engine)
        teacher.update(1)
        teacher.refresh()
    else:
        start = checkpoint.restore(found, engine, OPTIM)
        assert start.step == 2
        teacher.restore(found)
    ours, theirs = put_together(engine), whole(engine)
    same(ours, theirs)
    theirs |= {f"ema/{name}": value.clone() for name, value in teacher.averages()}
    same({f"ema/{name}": p.detach() for name, p in teacher.module.named_parameters()}, dict(averages_of(theirs)))
    if found is not None:
        same(theirs, load_file(origin / "whole.safetensors"))
    run = folder / (f"{label}-{stage}" if len(sources) == 1 else f"{label}-{source}-{stage}")
    with Saver(run, engine, OPTIM, LOOP, {"model": "test", "contract": "none"}, Position()) as saver:
        saver.add(teacher.pieces)
        saver.save(Position(2, 2 * LOOP.batch))
        saver.finish()
    if dist.rank() == 0:
        save_file(theirs, run / "whole.safetensors")
        export.export(checkpoint.folder_of(run, 2), run / "export.safetensors")
        same(load_file(run / "export.safetensors"), {name: theirs[f"weights/{name}"] for name in weights})
    dist.barrier()
    engine.destroy()


torch.set_num_threads(1)
dist.start()
for source in sources:
    for stage in range(4):
        go(stage, source)
dist.barrier()
dist.stop()
leave(0)
