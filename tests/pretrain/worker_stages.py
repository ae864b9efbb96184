"""By how much the engine moves weights in each of some steps: python worker_stages.py FILE STORE CASES

CASES: case of `step_gradients`, ZeRO stage and number of micro-batches, with colons between, bars between cases.
"""

import sys
from pathlib import Path

import torch
from step_gradients import MODEL, SAMPLES, a_scene, case, labelled_of

from pretrain.mixture import MixtureConfig, branches
from pretrain.network import Job, Pretraining
from voxscale import dist
from voxscale.batch import Losses
from voxscale.cli import leave
from voxscale.engine.config import EmaConfig, EngineConfig, OptimConfig
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.ema import Teacher
from voxscale.engine.run import first_weights
from voxscale.engine.state import read_weights, write_weights
from voxscale.models.build import build
from voxscale.seed import torch_generator

STEPS = 3


def run(config: MixtureConfig, stage: int, accumulate: int) -> dict[str, torch.Tensor]:
    """Moves of all weights and the mean loss of each step.

    Each step begins at weights that are drawn: a last bit that differs takes a value over a ReLU's kink, and in a
    network as small as this one that is a hundredth of a gradient two steps later.
    """

    def make() -> Pretraining:
        backbone = build(MODEL)
        return Pretraining(backbone, branches(config, backbone))

    network, parts = make(), accumulate * dist.world_size()
    optim = OptimConfig(kind="sgd", lr=30.0, weight_decay=0.0)  # clipped, so that all cases move alike
    how = EngineConfig(zero_stage=stage, precision="fp32", clip=1e-3, accumulate=accumulate)
    engine = start_engine(network, first_weights(network, 0), how, optim, SAMPLES // parts)
    teacher, labelled = Teacher(engine, EmaConfig(), STEPS, make()), labelled_of(config)
    drawn = {name: value.cpu().clone() for name, value in read_weights(engine)}
    found: dict[str, torch.Tensor] = {}
    engine.train()
    for step in range(STEPS):
        set_learning_rate(engine, optim.lr)
        total = 0.0
        for part in range(accumulate):
            engine.set_gradient_accumulation_boundary(part == accumulate - 1)
            scene = a_scene(step, part * dist.world_size() + dist.rank(), parts, labelled)
            teacher.refresh()
            plans = network.plans(scene)
            out = engine(Job(plans, dict.fromkeys(plans, 1.0), teacher=teacher.module, over=scene.over))
            losses = Losses(out["terms"], out["weights"], out["watched"])
            engine.backward(losses.total)
            total += float(dist.mean(losses.total))
        engine.step()
        teacher.update(step)
        found[f"{step} loss"] = torch.tensor(total)
        moves = [(value.cpu() - drawn[name]).flatten() for name, value in read_weights(engine)]
        found[f"{step} move"] = torch.cat(moves)
        generator = torch_generator(step, "move")
        drawn = {name: w + 0.05 * w.abs() * torch.randn(w.shape, generator=generator) for name, w in drawn.items()}
        write_weights(engine, drawn)
    engine.destroy()
    return found


torch.set_num_threads(1)
dist.start()
told = {}
for words in sys.argv[3].split("|"):
    name, stage, accumulate = words.split(":")
    told[words] = run(case(name, Path(sys.argv[2])), int(stage), int(accumulate))
if dist.rank() == 0:
    torch.save(told, sys.argv[1])
dist.barrier()
dist.stop()
leave(0)
