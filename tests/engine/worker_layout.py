"""Which convolutions of a narrow STU-Net do not answer channels-last, by `network_input` and the engine."""

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


def watch(model: nn.Module) -> tuple[dict[str, bool], list[int]]:
    """Fill in, as the model runs, whether each convolution's output is channels-last, and each input's step."""
    last: dict[str, bool] = {}
    steps: list[int] = []

    def hook_of(name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            steps.append(inputs[0].stride(1))
            last[name] = output.is_contiguous(memory_format=torch.channels_last_3d) and not output.is_contiguous()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(hook_of(name))
    return last, steps


torch.set_num_threads(1)
dist.start()
for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
    model = build(STUNetConfig(width=2, depth=1, classes=2, heads=1, strides=(TWO, ONE, ONE, ONE, ONE)))
    config = EngineConfig(zero_stage=stage, precision=precision)
    engine = start_engine(model, first_weights(model, 0), config, OptimConfig(), 1)
    seen, stem = watch(engine.module)
    (logits,) = engine(network_input(torch.randn(1, 1, 16, 16, 16), engine, True))
    engine.backward(logits.float().square().mean())
    engine.step()
    others = sorted(name for name, last in seen.items() if not last)
    row = {"stage": stage, "precision": precision, "stem": stem[0], "convolutions": len(seen), "others": others}
    print(json.dumps(row), flush=True)
    engine.destroy()
dist.barrier()
dist.stop()
leave(0)
