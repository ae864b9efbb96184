"""A small training problem for workers: models, samples, and a plain PyTorch loop to compare the engine with."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from voxscale import dist, seed
from voxscale.batch import Batch, Losses, Patch, collate
from voxscale.engine.config import OptimConfig
from voxscale.engine.convolution import mend_convolutions
from voxscale.engine.optim import build_optimizer
from voxscale.engine.schedule import learning_rate
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig

BATCH = 8
OPTIM = OptimConfig(lr=1e-2, weight_decay=1e-2, warmup=0.1)
CLIP = 1.0
ONE, TWO = (1, 1, 1), (2, 2, 2)


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.InstanceNorm3d(6, affine=True),
        nn.LeakyReLU(),
        nn.Conv3d(6, 5, 3, padding=1),
        nn.GroupNorm(1, 5),
        nn.Conv3d(5, 1, 1),
    )


def normed() -> nn.Module:
    """With running statistics."""
    return nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.LeakyReLU(), nn.Conv3d(6, 1, 1))


def stunet() -> nn.Module:
    return build(STUNetConfig(width=2, depth=1, classes=1, heads=2, strides=(TWO, TWO, ONE, ONE, ONE)))


def decoder() -> nn.Module:
    """A STU-Net whose last decoder step is large enough for the transposed form of its convolutions."""
    return build(STUNetConfig(width=2, depth=1, classes=1, heads=1, strides=(TWO, ONE, ONE, ONE, ONE)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "tiny": (tiny, (6, 5, 4)),
    "normed": (normed, (6, 5, 4)),
    "stunet": (stunet, (8, 8, 8)),
    "decoder": (decoder, (16, 16, 16)),
}


def make(name: str) -> nn.Module:
    """A model with the same weights in every process."""
    model = MODELS[name][0]()
    with torch.no_grad():
        for key, p in model.named_parameters():
            scale = 0.3 if name in ("tiny", "normed") else 1 / math.sqrt(p[0].numel())
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=seed.torch_generator(1, key)) * scale)
            else:
                p.fill_(float(key.endswith("weight")))
    return model


def sample(name: str, index: int, bad: dict[int, float] | None = None) -> Patch:
    """A sample; one in `bad` is multiplied, such as with NaN or a large number."""
    values = seed.rng(0, "sample", index).normal(size=MODELS[name][1]).astype(np.float32)
    return Patch(values * np.float32((bad or {}).get(index, 1.0)), None, np.eye(3, 4), (1.0, 0.0), 0, index, "x")


def batches(name: str, start: int, accumulate: int, bad: dict[int, float] | None = None) -> Iterator[Batch]:
    """This rank's micro-batches."""
    micro = BATCH // accumulate // dist.world_size()
    for part in itertools.count(start * accumulate):
        first = (part * dist.world_size() + dist.rank()) * micro
        yield collate([sample(name, i, bad) for i in range(first, first + micro)])


def loss_of(outputs: Tensor | list[Tensor], x: Tensor) -> Tensor:
    out = outputs[0] if isinstance(outputs, list) else outputs
    loss = ((out.float() - x.cumsum(-1)) ** 2).mean()
    two = isinstance(outputs, list) and len(outputs) > 1
    return loss + 0.1 * outputs[1].float().square().mean() if two else loss


def objective(engine: nn.Module, batch: Batch) -> tuple[Losses, int]:
    x = batch.voxels.float()
    outputs = engine(x.to(next(engine.parameters()).dtype))
    return Losses({"mse": loss_of(outputs, x)}, {"mse": 1.0}, {}), x.numel()


def plain(
    name: str,
    steps: int,
    bf16: bool = False,
    skip: tuple[int, ...] = (),
    each: Callable[[int, nn.Module], None] | None = None,
) -> tuple[list[float], dict[str, Tensor]]:
    """The reference: one process, whole batches, torch alone; bf16 computes with rounded copies of fp32 weights.

    Args:
        name: Of the model.
        steps: To make.
        bf16: Whether the forward and backward pass are in bf16.
        skip: Steps without an update.
        each: Called after each update with the step and the model that holds fp32 weights.

    Returns:
        Losses, and the last weights.
    """
    master, working = make(name), make(name)
    if bf16:
        working = working.bfloat16()
        mend_convolutions(working)
    optimizer = build_optimizer(master, OPTIM)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIM, step, steps) * group["lr_scale"]
        x = collate([sample(name, i) for i in range(step * BATCH, (step + 1) * BATCH)]).voxels
        loss = loss_of(working(x.to(next(working.parameters()).dtype)), x)
        loss.backward()
        losses.append(float(loss.detach()))
        if step not in skip:
            for p, q in zip(master.parameters(), working.parameters(), strict=True):
                p.grad = None if q.grad is None else q.grad.float()
            torch.nn.utils.clip_grad_norm_(master.parameters(), CLIP)
            optimizer.step()
            with torch.no_grad():
                for p, q in zip(master.parameters(), working.parameters(), strict=True):
                    q.copy_(p)
            if each is not None:
                each(step, master)
        working.zero_grad()
    return losses, {key: p.detach() for key, p in master.named_parameters()}


def fsdp2(name: str, steps: int) -> list[float]:
    """The same with torch's own sharding."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make(name)
    mesh = init_device_mesh("cpu", (dist.world_size(),))
    fully_shard(model, mesh=mesh)
    optimizer = build_optimizer(model, OPTIM)
    source = batches(name, 0, 1)
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(OPTIM, step, steps) * group["lr_scale"]
        x = next(source).voxels
        loss = loss_of(model(x), x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        total, count = dist.total([float(loss.detach()), 1.0])
        losses.append(total / count)
    return losses


def scratch(run: Path) -> Path:
    """A run folder that all ranks may use."""
    if dist.rank() == 0:
        run.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    return run
