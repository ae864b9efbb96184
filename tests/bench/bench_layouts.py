"""Channels-last for every family of backbones: `make bench ONLY=layouts`; compiled blocks: `ONLY=compile`.

Forward, backward from the mean square of the outputs; batch 1, bf16 weights of the
contiguous form as the engine holds them, one thread, dropout off. Two variants of one
network step in alternation in one process; a ratio is the median of neighbouring CPU
seconds, plain over variant, above 1 where the variant wins. `ratio` is the share of families
that could be measured; `on` of each family is where its default comes from
(`voxscale/engine/layout.py`, a test compares).
`FAMILIES="pctnet resnet50"` (presets) measures these alone and keeps the other rows, with `WEIGHTS=1` the layout of
their weights alone.
"""

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from harness import RESULTS, alternate, finish, paired_ratio
from torch import Tensor, nn

from configs import models
from launch.machine import describe
from voxscale.engine.convolution import mend_convolutions
from voxscale.engine.layout import channels_last, family
from voxscale.engine.norm import mend_batch_norms
from voxscale.engine.pooling import mend_pools
from voxscale.models.build import ModelConfig, build
from voxscale.models.interface import Backbone
from voxscale.models.turned import turn_back, turn_convolutions
from voxscale.seed import torch_generator

ROUNDS = 3
WIN = 1.03
"""What a variant must gain; less is within the noise of this measurement."""
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


def weights(preset: str) -> dict[str, Any]:
    """Channels-last images with contiguous weights against those with turned ones (`engine.weights_last`)."""
    model, side = make(preset), PRESETS[preset]
    other, variant = copy.deepcopy(model), copy.deepcopy(model)
    turn_convolutions(other, torch.float32)
    exact = [step(m, images(m, side, True, torch.float32))() for m in (model, other)]
    if exact[1][-1].shape != exact[0][-1].shape:  # the gradient of a turned weight
        exact[1][-1] = turn_back(exact[1][-1])
    turned = turn_convolutions(variant, torch.bfloat16)
    halve(model), halve(variant)
    runs = [step(m, images(m, side, True, torch.bfloat16)) for m in (model, variant)]
    times = alternate(runs[0], runs[1], ROUNDS)
    found = {"ratio": round(paired_ratio(*times), 3), "difference": difference(exact[1], exact[0]), **seconds(times)}
    return found | {"turned": turned}


def seconds(times: tuple[list[float], list[float]]) -> dict[str, list[float]]:
    """All timings, rounded."""
    return {name: [round(t, 3) for t in kept] for name, kept in zip(("plain_s", "variant_s"), times, strict=True)}


def decide(row: dict[str, Any]) -> bool:
    """The rule: channels-last is on where its outputs agree and it gains."""
    return row["difference"] <= 1e-4 and row["ratio"] >= WIN


def conclude(rows: dict[str, dict[str, Any]]) -> None:
    """Write the result of what is measured so far."""
    ratio = sum("ratio" in row["channels_last"] for row in rows.values()) / len(PRESETS)
    finish("layouts", ratio, 1.0, ratio == 1.0, families=rows, win=WIN, threads=1)


def main() -> None:
    """Fill the table, print each row as it comes, write the result."""
    wanted = os.environ.get("FAMILIES", "").split()
    rows: dict[str, dict[str, Any]] = {}
    if wanted or os.environ.get("WEIGHTS"):
        rows |= json.loads((RESULTS / "layouts.json").read_text())["families"]

    torch.set_num_threads(1)
    for preset in wanted or PRESETS:
        name = family(config_of(preset))
        old = rows.get(name) if os.environ.get("WEIGHTS") else None  # measures the weights' layout alone
        made = old or {"preset": preset, "side": PRESETS[preset], "commit": describe()["commit"]}
        if old is None:
            made["channels_last"] = layouts(preset)
            made["on"] = {"channels_last": decide(made["channels_last"])}
        made["weights_last"] = weights(preset) | {"commit": describe()["commit"]}
        print(preset, made, flush=True)
        rows[name] = made
        conclude(rows)


if __name__ == "__main__":
    main()
