"""Channels-last and torch.compile for every family of backbones: `make bench ONLY=layouts`.

Forward, backward from the mean square of the outputs; batch 1, bf16 weights of the
contiguous form as the engine holds them, one thread, dropout off. Two variants of one
network step in alternation in one process; a ratio is the median of neighbouring CPU
seconds, plain over variant, above 1 where the variant wins. First layouts, then the blocks compiled as the
engine compiles them, in the family's better layout, with a limit on the time of the whole
cell. `ratio` is the share of families whose layouts could be measured; `on` of each family is
where its default comes from (`voxscale/engine/layout.py`, a test compares the layouts).
`FAMILIES="pctnet resnet50"` (presets) measures the layouts of these alone and keeps the other rows.
"""

import copy
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from harness import RESULTS, alternate, finish, paired_ratio
from torch import Tensor, nn

from configs import models
from launch.machine import describe
from voxscale.engine.convolution import mend_convolutions
from voxscale.engine.deepspeed import compile_blocks
from voxscale.engine.layout import channels_last, family
from voxscale.engine.norm import mend_batch_norms
from voxscale.engine.pooling import mend_pools
from voxscale.models.build import ModelConfig, build
from voxscale.models.interface import Backbone
from voxscale.seed import torch_generator

ROUNDS = 3
LIMIT_S = 75
"""Seconds for a whole cell of compiled blocks."""
WIN = 1.03
"""What a variant must gain; less is within the noise of this measurement."""
PAYS_BACK = 1000
"""Steps within which compiling must have saved its own time, as every start and every requeue compiles again."""
PRESETS = {
    "stunet_s": 64, "plainconv": 64, "resenc_l": 64, "fmunet": 64, "pctnet": 64, "swin_unetr": 64, "vit_b": 64,
    "sam_vit_b": 64, "resnet50": 128, "convnext_b": 128, "vit_b_timm": 224,
}  # fmt: skip
"""One of each family, and the side of its images."""


def config_of(preset: str) -> ModelConfig:
    """The preset, with heads where it has a decoder, and without dropout, which would hide differences."""
    config = getattr(models, preset)()
    chances = {field.name: 0.0 for field in dataclasses.fields(config) if field.name in ("dropout", "drop_path")}
    config = dataclasses.replace(config, **chances)
    if not hasattr(config, "classes"):
        return config
    return dataclasses.replace(config, classes=5, heads=1 if preset == "swin_unetr" else 2)


def make(preset: str) -> Backbone:
    """The network in training."""
    model = build(config_of(preset)).train()
    assert not any(
        module.p for module in model.modules() if isinstance(module, nn.Dropout | nn.Dropout2d | nn.Dropout3d)
    )
    return model


def halve(model: Backbone) -> Backbone:
    """bf16 weights, with what the engine mends."""
    for p in model.parameters():
        p.data = p.data.bfloat16()
    mend_convolutions(model)
    mend_batch_norms(model)
    mend_pools(model)
    return model


def images(model: Backbone, side: int, last: bool, kind: torch.dtype) -> Tensor:
    """A batch of one."""
    x = torch.randn(1, model.config.in_channels, *[side] * model.dims, generator=torch_generator(1)).to(kind)
    return channels_last(x) if last else x


def step(model: Backbone, x: Tensor) -> Callable[[], list[Tensor]]:
    """Forward and backward; returns outputs and the gradient of the first weight."""
    weight = next(model.parameters())

    def run() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        outputs = model(x)
        torch.stack([y.float().square().mean() for y in outputs]).sum().backward()
        assert weight.grad is not None
        return [*(y.detach().float() for y in outputs), weight.grad.float()]

    return run


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest distance of any two of the tensors, in norms of the first."""
    return max(float((a - b).norm() / a.norm()) for a, b in zip(theirs, ours, strict=True))


def layouts(preset: str) -> dict[str, Any]:
    """Contiguous images against channels-last ones."""
    model, side = make(preset), PRESETS[preset]
    exact = [step(model, images(model, side, last, torch.float32))() for last in (False, True)]
    halve(model)
    plain, variant = (step(model, images(model, side, last, torch.bfloat16)) for last in (False, True))
    times = alternate(plain, variant, ROUNDS)
    return {"ratio": round(paired_ratio(*times), 3), "difference": difference(exact[1], exact[0]), **seconds(times)}


def compiled(preset: str, last: bool) -> dict[str, Any]:
    """Plain blocks against compiled ones, both in bf16."""
    model, side = make(preset), PRESETS[preset]
    other = copy.deepcopy(model)
    blocks = compile_blocks(halve(other))
    plain, variant = (step(m, images(m, side, last, torch.bfloat16)) for m in (halve(model), other))
    began = time.monotonic()
    apart = difference(variant(), plain())
    took = time.monotonic() - began
    times = alternate(plain, variant, ROUNDS)
    found = {"ratio": round(paired_ratio(*times), 3), "difference": apart, **seconds(times)}
    return found | {"blocks": blocks, "compile_s": round(took, 1)}


def seconds(times: tuple[list[float], list[float]]) -> dict[str, list[float]]:
    """All timings, rounded."""
    return {name: [round(t, 3) for t in kept] for name, kept in zip(("plain_s", "variant_s"), times, strict=True)}


def decide(name: str, row: dict[str, Any]) -> bool:
    """The rule: a variant is on where its outputs agree, it gains, and compiling pays back within `PAYS_BACK` steps."""
    if "ratio" not in row or row["difference"] > (1e-4 if name == "channels_last" else 3e-2) or row["ratio"] < WIN:
        return False
    gain = sum(row["plain_s"]) / len(row["plain_s"]) - sum(row["variant_s"]) / len(row["variant_s"])
    return name == "channels_last" or gain * PAYS_BACK > row["compile_s"]


def cell(*words: str) -> dict[str, Any]:
    """What a process of its own finds, or why it finds nothing."""
    command = [sys.executable, __file__, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {LIMIT_S} s"}
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def conclude(rows: dict[str, dict[str, Any]]) -> None:
    """Write the result of what is measured so far."""
    ratio = sum("ratio" in row["channels_last"] for row in rows.values()) / len(PRESETS)
    finish("layouts", ratio, 1.0, ratio == 1.0, families=rows, win=WIN, pays_back=PAYS_BACK, limit_s=LIMIT_S, threads=1)


def measure() -> None:
    """Fill the table, print each row as it comes, write the result; two cells of compiled blocks run at a time."""
    wanted = os.environ.get("FAMILIES", "").split()
    rows: dict[str, dict[str, Any]] = {}
    if wanted:
        rows |= json.loads((RESULTS / "layouts.json").read_text())["families"]

    torch.set_num_threads(1)
    for preset in wanted or PRESETS:
        row, side = layouts(preset), PRESETS[preset]
        print(preset, row, flush=True)
        on = {"channels_last": decide("channels_last", row), "compile": False}
        made = {"preset": preset, "side": side, "channels_last": row, "on": on, "commit": describe()["commit"]}
        rows[family(config_of(preset))] = made
        conclude(rows)
    if wanted:
        return

    def compile_one(row: dict[str, Any]) -> None:
        kind = "last" if row["on"]["channels_last"] else "first"
        row["compile"] = cell(row["preset"], kind)
        row["on"]["compile"] = decide("compile", row["compile"])
        print(row["preset"], row["compile"], row["on"], flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, list(rows.values())))
    conclude(rows)


def main() -> None:
    """Measure everything, or with a preset and `first` or `last` its compiled blocks."""
    if len(sys.argv) == 1:
        measure()
        return
    torch.set_num_threads(1)
    preset, kind = sys.argv[1:]
    print(json.dumps(compiled(preset, kind == "last")))


if __name__ == "__main__":
    main()
