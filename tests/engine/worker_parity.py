"""Train with the engine in many settings, in one process per rank; rank 0 writes losses and weights.

python worker_parity.py FOLDER MODEL STEPS CASES   (a case: stage-precision-offload-accumulate, then -last
with weights that lie channels-last; or fsdp2)
"""

import json
import sys
from pathlib import Path

import torch
from small import CLIP, OPTIM, batches, fsdp2, make, objective, scratch

from voxscale import dist
from voxscale.cli import leave
from voxscale.engine.checkpoint import Position
from voxscale.engine.config import EngineConfig, LoopConfig, TrackerConfig, micro_batch
from voxscale.engine.deepspeed import start_engine
from voxscale.engine.loop import train
from voxscale.engine.state import read_weights
from voxscale.engine.tracker import Tracker
from voxscale.models.turned import turned_names

folder, name, steps, cases = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4].split(",")
torch.set_num_threads(1)
dist.start()
loop = LoopConfig(steps=steps, batch=8, log_every=1, checkpoint_every=steps)
for case in cases:
    run = scratch(folder / case)
    if case == "fsdp2":
        losses = fsdp2(name, steps)
        if dist.rank() == 0:
            (run / "losses.json").write_text(json.dumps(losses))
        continue
    stage, precision, offload, accumulate, *last = case.split("-")
    how = {"zero_stage": int(stage), "precision": precision, "offload": offload, "accumulate": int(accumulate)}
    config = EngineConfig(**how, weights_last="on" if last else "off", clip=CLIP)
    net = make(name)
    weights = {key: p.detach().clone() for key, p in net.named_parameters()}
    engine = start_engine(net, weights, config, OPTIM, micro_batch(loop.batch, config.accumulate, dist.world_size()))
    tracker = Tracker(run, TrackerConfig(wandb=False), {}, 0) if dist.rank() == 0 else None
    about = {"model": "test", "contract": "none"}
    source = batches(name, 0, config.accumulate)
    train("test", engine, source, objective, loop, OPTIM, run, Position(), about, tracker)
    assert bool(turned_names(engine.module)) == bool(last)
    final = dict(read_weights(engine))
    if dist.rank() == 0:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        (run / "losses.json").write_text(json.dumps([row["loss"] for row in rows]))
        torch.save(final, run / "final.pt")
    engine.destroy()
dist.barrier()
dist.stop()
leave(0)
