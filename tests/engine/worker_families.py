"""Four steps in bf16 of narrow twins of presets: python worker_families.py PRESET-STAGE,...

The first step has no gradient, so weight decay alone acts. Three follow, as the last norm of a residual block begins at
zero (nnU-Net's rule): no gradient gets into the block at first, and one of 1e-11 after one update, which Adam's epsilon
of 1e-8 makes an update below the last place of fp32 at 1. Plain PyTorch in fp64 does the same.
"""

import dataclasses
import json
import sys
import time

import torch
from models.presets import images, narrow, preset

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import EmaConfig, EngineConfig, OptimConfig
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.state import read_weights
from voxscale.models.build import build
from voxscale.models.interface import Backbone

OPTIM = OptimConfig(lr=1e-3, weight_decay=0.5)


def twin(name: str) -> Backbone:
    """A narrow twin; few voxels, as bf16 convolutions of few channels are slow on CPUs."""
    config = narrow(preset(name))
    if any(field.name == "strides" for field in dataclasses.fields(config)):
        config = dataclasses.replace(config, strides=((2, 2, 2), *[(1, 1, 1)] * (len(config.strides) - 1)))
    return build(config)


def steps(name: str, stage: int) -> dict[str, object]:
    model = twin(name)
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    free = sorted(model.no_decay())  # before stage 3 leaves no shape
    x = images(model, batch=2).bfloat16()
    engine = start_engine(model, weights, EngineConfig(zero_stage=stage), OPTIM, 2)
    engine.train()
    set_learning_rate(engine, OPTIM.lr)
    losses, after = [], []
    for step in range(4):
        loss = sum(y.float().square().mean() for y in engine(x))
        engine.backward(loss * 0 if step == 0 else loss)
        engine.step()
        losses.append(float(loss.detach()))
        after.append({key: value.clone() for key, value in read_weights(engine)})
    teacher = Teacher(engine, EmaConfig(), 4, twin(name))
    with torch.no_grad():
        seen = teacher.module(x)
    kept = {key: float(((after[0][key] / weights[key]).double()).nanmean()) for key in weights}
    row = {"name": name, "stage": stage, "losses": losses, "kept": kept, "free": free, "size": list(x.shape)}
    row["still"] = [key for key in weights if torch.equal(after[0][key], after[3][key])]
    row["buffers"] = sorted({str(b.dtype) for m in (engine.module, teacher.module) for b in m.buffers()})
    row["teacher"] = all(bool(y.isfinite().all()) and y.dtype == torch.bfloat16 for y in seen)
    engine.destroy()
    return row


torch.set_num_threads(1)
dist.start()
for case in sys.argv[1].split(","):
    name, _, stage = case.rpartition("-")
    began = time.process_time()
    row = steps(name, int(stage))
    print(json.dumps(row | {"cpu_s": round(time.process_time() - began, 2)}), flush=True)
dist.barrier()
dist.stop()
leave(0)
