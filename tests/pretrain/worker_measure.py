"""A mixture balanced by its gradients, measured in every step, at ZeRO stages 2 and 3: python worker_measure.py FILE"""

import json
import sys
from typing import Any

import torch
from step_gradients import MIXTURE, MODEL, a_scene

from pretrain.mixture import branches
from pretrain.network import Job, Pretraining
from voxscale import dist
from voxscale.batch import Losses
from voxscale.cli import leave
from voxscale.engine.config import EmaConfig, EngineConfig, OptimConfig
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.run import first_weights
from voxscale.models.build import adapt, build

STEPS = 3


def run(stage: int, recomputed: tuple[int, ...]) -> dict[str, Any]:
    """What is watched in every step, and how many weights this rank holds whole when they are over."""

    def make() -> Pretraining:
        backbone = build(adapt(MODEL, in_channels=1, classes=0, heads=0, strides=MODEL.strides))
        backbone.checkpoint_stages = recomputed
        return Pretraining(backbone, branches(MIXTURE, backbone))

    network = make()
    optim = OptimConfig(kind="sgd", lr=1e-3)
    config = EngineConfig(zero_stage=stage, precision="fp32", clip=1e6)
    engine = start_engine(network, first_weights(network, 0), config, optim, 8 // dist.world_size())
    teacher = Teacher(engine, EmaConfig(), STEPS, make())
    engine.train()
    rows = []
    for step in range(STEPS):
        set_learning_rate(engine, optim.lr)
        scene = a_scene(step, dist.rank(), dist.world_size())
        teacher.refresh()
        plans = network.plans(scene)
        measured = step != 1  # a step between, without
        out = engine(
            Job(
                plans,
                dict.fromkeys(plans, 1.0),
                teacher=teacher.module,
                measure=measured,
                balance=True,
                over=scene.over,
            )
        )
        losses = Losses(out["terms"], out["weights"], out["watched"])
        engine.backward(losses.total)
        engine.step()
        teacher.update(step)
        rows.append({"loss": float(losses.total)} | {k: float(v) for k, v in out["watched"].items()})
    held = sum(int(p.data.numel() > 0) for p in network.parameters())
    engine.destroy()
    return {"rows": rows, "held": held}


torch.set_num_threads(1)
dist.start()
told = {f"{stage}-{len(again)}": run(stage, again) for stage, again in ((2, ()), (3, (0, 1)))}
if dist.rank() == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(told, file)
dist.barrier()
dist.stop()
leave(0)
