"""Which convolutions of a narrow STU-Net answer in another layout than channels-last, by `network_input` and the engine."""

import json

import torch
from torch import Tensor, nn

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import EngineConfig, OptimConfig
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.run import first_weights, network_input
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig

TWO, ONE = (2, 2, 2), (1, 1, 1)
torch.set_num_threads(1)
dist.start()
for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
    model = build(STUNetConfig(width=2, depth=1, classes=2, heads=1, strides=(TWO, ONE, ONE, ONE, ONE)))
    config = EngineConfig(zero_stage=stage, precision=precision)
    engine = start_engine(model, first_weights(model, 0), config, OptimConfig(), 1)
    seen: dict[str, bool] = {}
    stem: list[int] = []

    def look(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            stem.extend([] if stem else [inputs[0].stride(1)])
            seen[name] = output.is_contiguous(memory_format=torch.channels_last_3d) and not output.is_contiguous()

        return hook

    for name, module in engine.module.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(look(name))
    (logits,) = engine(network_input(torch.randn(1, 1, 16, 16, 16), engine, True))
    engine.backward(logits.float().square().mean())
    engine.step()
    others = sorted(name for name, last in seen.items() if not last)
    row = {"stage": stage, "precision": precision, "stem": stem, "convolutions": len(seen), "others": others}
    print(json.dumps(row), flush=True)
    engine.destroy()
dist.barrier()
dist.stop()
leave(0)
