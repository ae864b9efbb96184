"""Running statistics of a network and of its teacher on all ranks after each step: python worker_ema_buffers.py FILE"""

import sys

import torch
from small import BATCH, CLIP, OPTIM, batches, make, objective

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import EmaConfig, EngineConfig
from voxscale.engine.deepspeed import set_learning_rate, start_engine
from voxscale.engine.ema import Teacher

STEPS = 3
torch.set_num_threads(1)
dist.start()
net = make("normed")
weights = {key: p.detach().clone() for key, p in net.named_parameters()}
engine = start_engine(net, weights, EngineConfig(precision="fp32", clip=CLIP), OPTIM, BATCH // dist.world_size())
teacher, source = Teacher(engine, EmaConfig(), STEPS, make("normed")), batches("normed", 0, 1)
engine.train()
told = []
for step in range(STEPS):
    set_learning_rate(engine, OPTIM.lr)
    engine.backward(objective(engine, next(source))[0].total)
    engine.step()
    teacher.update(step)
    teacher.refresh()
    for module in (engine.module, teacher.module):
        told.append(dist.gather({name: value.clone() for name, value in module.named_buffers()}))
if dist.rank() == 0:
    torch.save(told, sys.argv[1])
dist.barrier()
dist.stop()
leave(0)
