"""Volume Fusion's whole chain on the CPU, crops to fused pair, against PyMIC's and a copy: `make bench ONLY=vf_chain`.

Ours reads the boxes of two crops of a 192^3 scan, resamples them, changes their values and fuses them; PyMIC's does the
same with its journal version's defaults. One thread, warm, CPU time. `ratio` is ours through a copy of the pair, the
worse of two sizes (goal 30); the goal against PyMIC is a tenth of its time.
"""

import importlib
import random
import statistics
import sys
import types
import warnings
from typing import Any

import numpy as np
import torch
from harness import alternate, finish, paired_ratio
from scipy import ndimage

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.volume_fusion import fuse_views
from pretrain.views import ViewsConfig, make_views
from voxscale.augment import spatial
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Patch, collate
from voxscale.engine.heap import keep_freed_memory
from voxscale.seed import rng
from voxscale.stream.crop import cut, place

GOAL, TIMES = 30.0, 10.0
SCAN = 192
ROUNDS = 15
ONE = (1.0, 1.0, 1.0)


class Absent(types.ModuleType):
    """A package that PyMIC imports beside its transforms and that they do not use."""

    __path__: list[str] = []  # noqa: RUF012  # so that its parts can be asked for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def pymic() -> tuple[Any, list[str]]:
    """PyMIC's module of Volume Fusion, and the packages that are not here."""
    absent: list[str] = []
    while True:
        try:
            return importlib.import_module("pymic.transform.crop4vf"), absent
        except ModuleNotFoundError as error:
            name = str(error.name)
            sys.modules[name] = Absent(name)
            absent.append(name)


def patches(scan: np.ndarray, side: int, number: int) -> list[Patch]:
    """Boxes of two crops, as a stream cuts them."""
    out = []
    for view in range(2):
        generator = rng(0, "crop", number, view)
        drawn = spatial.sample(generator, SpatialConfig())
        size = spatial.extent(drawn, (side,) * 3, ONE, ONE)
        centre = place(generator, scan.shape, size)
        box = cut(scan.shape, size, centre)
        start = [s.start for s in box]
        inner = tuple(c - a for c, a in zip(centre, start, strict=True))
        matrix = spatial.matrix(drawn, (side,) * 3, ONE, ONE, inner)
        out.append(Patch(scan[box], None, matrix, (1.0, 0.0), 2 * number + view, number, "scan"))
    return out


def main() -> None:
    """Measure both sizes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    module, absent = pymic()
    if not hasattr(ndimage, "interpolation"):
        ndimage.interpolation = ndimage
    random.seed(0)
    scan = ndimage.zoom(np.random.default_rng(0).random((24, 24, 24)).astype(np.float32), SCAN / 24, order=1)
    cells = {}
    for side in (96, 128):
        params = {"crop4volumefusion_output_size": [side] * 3, "task": "SELF_SUPERVISED"}
        steps = module.Crop4VolumeFusion(params), module.VolumeFusion(params)
        numbers = iter(range(10**6))
        pair = torch.rand(2, 1, side, side, side)
        copy = torch.empty_like(pair)

        def ours(side: int = side, numbers: Any = numbers) -> None:
            batch = collate(patches(scan, side, next(numbers)))
            fuse_views(make_views(batch, (side,) * 3, 2, ViewsConfig()), VolumeFusionConfig())

        def theirs(steps: Any = steps) -> None:
            steps[1](steps[0]({"image": scan[None]}))

        def copied(pair: torch.Tensor = pair, copy: torch.Tensor = copy) -> None:
            copy.copy_(pair)

        mine, peer = alternate(ours, theirs, ROUNDS)
        again, base = alternate(ours, copied, ROUNDS)
        cells[str(side)] = {
            "copies": round(paired_ratio(again, base), 2),
            "times_as_fast_as_pymic": round(1 / paired_ratio(mine, peer), 2),
            "ms": round(1e3 * statistics.median(mine), 2),
            "pymic_ms": round(1e3 * statistics.median(peer), 2),
            "copy_ms": round(1e3 * statistics.median(base), 3),
        }
    ratio = max(cell["copies"] for cell in cells.values())
    slowest = min(cell["times_as_fast_as_pymic"] for cell in cells.values())
    finish(
        "vf_chain", ratio, GOAL, ratio <= GOAL and slowest >= TIMES, times_as_fast_as_pymic=slowest,
        times_goal=TIMES, cells=cells, threads=1, scan=SCAN, absent=absent,
    )  # fmt: skip


if __name__ == "__main__":
    main()
