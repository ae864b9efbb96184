"""Which collectives each micro-batch and the optimizer's step ask for: python worker_collectives.py CASES

A case: stage-precision-accumulate. Each rank prints for each case the elements that are sent, by kind, in each part.
"""

import json
import sys
from collections import Counter
from typing import Any

import torch
from small import BATCH, CLIP, OPTIM, batches, make, objective
from torch.utils._python_dispatch import TorchDispatchMode

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.config import EngineConfig, micro_batch
from voxscale.engine.deepspeed import start_engine


class Sent(TorchDispatchMode):
    """Sees every collective where torch itself hands it to the process group, whoever called it."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a])]
            sizes = [t.numel() for t in tensors if isinstance(t, torch.Tensor)]
            self.elements[func.overloadpacket.__name__.strip("_")] += max(sizes, default=0)
        return func(*args, **(kwargs or {}))


torch.set_num_threads(1)
dist.start()
for case in sys.argv[1].split(","):
    stage, precision, accumulate = case.split("-")
    config = EngineConfig(zero_stage=int(stage), precision=precision, accumulate=int(accumulate), clip=CLIP)
    net = make("tiny")
    weights = {key: p.detach().clone() for key, p in net.named_parameters()}
    engine = start_engine(net, weights, config, OPTIM, micro_batch(BATCH, config.accumulate, dist.world_size()))
    source = batches("tiny", 0, config.accumulate)
    for _ in range(3):  # of which the last is shown: the first ones make lists and moments
        parts = []
        for part in range(config.accumulate):
            with Sent() as sent:
                engine.set_gradient_accumulation_boundary(part == config.accumulate - 1)
                losses, _ = objective(engine, next(source))
                engine.backward(losses.total)
            parts.append(dict(sent.elements))
        with Sent() as sent:
            engine.step()
    count = sum(p.numel() for p in make("tiny").parameters())
    print(json.dumps({"case": case, "weights": count, "parts": parts, "step": dict(sent.elements)}), flush=True)
    engine.destroy()
dist.barrier()
dist.stop()
leave(0)
