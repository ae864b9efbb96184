"""Volume Fusion of one pair, label painting included, against a copy of the pair: `make bench ONLY=vf_cpu`.

Both sides run on one thread and warm; goal: at most twice the copy. The ratio
is that of the worse of the two sizes, by CPU time.
"""

import itertools

import torch
from harness import alternate, finish, paired_ratio

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.volume_fusion import draw_and_fuse
from voxscale.engine.heap import keep_freed_memory
from voxscale.seed import torch_generator

GOAL = 2.0
ROUNDS = 60


def main() -> None:
    """Measure both sizes."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    config = VolumeFusionConfig()
    cells = {}
    for side in (96, 128):
        size = (side, side, side)
        pair = torch.rand(2, 1, *size, generator=torch_generator(0, "bench", side))
        copy = torch.empty_like(pair)
        seeds = itertools.count()

        def fused(pair=pair, size=size, seeds=seeds) -> None:
            draw_and_fuse(pair[:1], pair[1:], [next(seeds)], config)

        def copied(pair=pair, copy=copy) -> None:
            copy.copy_(pair)

        ours, theirs = alternate(fused, copied, ROUNDS)
        cells[str(side)] = {
            "ratio": round(paired_ratio(ours, theirs), 3),
            "fuse_ms": round(1e3 * sorted(ours)[ROUNDS // 2], 3),
            "copy_ms": round(1e3 * sorted(theirs)[ROUNDS // 2], 3),
        }
    ratio = max(cell["ratio"] for cell in cells.values())
    finish("vf_cpu", ratio, GOAL, ratio <= GOAL, cells=cells, threads=1)


if __name__ == "__main__":
    main()
