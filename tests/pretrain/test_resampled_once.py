"""Volume Fusion's crops: stored boxes that are interpolated once, trilinearly, where the batch lies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests_stores import make_store, scan
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.volume_fusion import VolumeFusion
from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale.augment import resample
from voxscale.augment.spatial import SpatialConfig
from voxscale.batch import Batch, collate
from voxscale.contract import InputContract
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.stream import StoreStream, StoreStreamConfig

PATCH = (12, 16, 14)
SAMPLES = 3


class Interpolations(TorchDispatchMode):
    """Notes all of torch's operations that read between voxels, by name, with the shape of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if any(word in func.name() for word in ("grid_sampler", "upsample", "affine_grid", "conv", "pool")):
            self.seen.append((func.name(), tuple(found.shape)))
        return found


def a_batch(folder: Path, angle: float) -> Batch:
    """Two crops of each sample, zoomed and mirrored, on the host as they are stored."""
    make_store(folder, 3, labelled=False)
    how = StoreStreamConfig(views=2, spatial=SpatialConfig(zoom=(0.7, 1.3), flip=(0.5,) * 3, rotate=(angle,) * 3))
    stream = StoreStream(folder, PATCH, InputContract(spacing=(2.0, 1.5, 1.5)), how, 0)
    patches = [patch for number in range(SAMPLES) for patch in stream.sample(number)[0]]
    stored = [scan(number)[0].voxels for number in range(3)]
    for patch in patches:
        assert patch.voxels.dtype == np.int16
        fits = [one for one in stored if all(n <= m for n, m in zip(patch.voxels.shape, one.shape, strict=True))]
        windows = (np.lib.stride_tricks.sliding_window_view(one, patch.voxels.shape) for one in fits)
        assert any((one == patch.voxels).all(axis=(3, 4, 5)).any() for one in windows)  # not one value is changed
    return collate(patches)


def by_hand(batch: Batch) -> list[torch.Tensor]:
    """Each crop from its own box by torch's trilinear interpolation, in float64."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in PATCH], indexing="ij"), dim=-1)
    out: list[torch.Tensor] = []
    for row, matrix in enumerate(batch.matrix.double()):
        size = batch.sizes[row].long()
        box = batch.voxels[row : row + 1, :, : size[0], : size[1], : size[2]].double()
        where = index @ matrix[:, :3].T + matrix[:, 3]
        inside = ((where >= -0.5) & (where <= size - 0.5)).all(dim=-1)
        points = (where / (size - 1) * 2 - 1).flip(-1)[None]
        read = F.grid_sample(box, points, mode="bilinear", padding_mode="border", align_corners=True)[0, 0]
        factor, offset = batch.scale[row].double()
        out.append((read * factor + offset).clamp(0, 1) * inside)
    return out


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_each_voxel_of_both_crops_is_interpolated_once_and_trilinearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, angle: float
) -> None:
    """Along the axes by the kernel of the host, where it is built, turned by torch; never both, never twice."""
    batch, by_kernel = a_batch(tmp_path / "store", angle), list[tuple[int, ...]]()
    plain = resample.sample_along_axes

    def counting(*arguments: Any) -> torch.Tensor | None:
        found = plain(*arguments)
        by_kernel.extend([] if found is None else [tuple(found.shape)])
        return found

    monkeypatch.setattr(resample, "sample_along_axes", counting)
    config = VolumeFusionConfig(block_min=2, block_max=6)
    branch = VolumeFusion(config, build(STUNetConfig(width=2, depth=1), "meta"))
    scene = Scene(batch, PATCH, 2, ViewsConfig(intensity=False))
    with Interpolations() as seen:
        background, foreground, label, fused, _ = branch.plan(scene).targets
        branch.plan(scene)  # what is made once is kept
    read = [("aten::grid_sampler_3d", shape) for shape in by_kernel] + seen.seen
    assert read == [("aten::grid_sampler_3d", (2 * SAMPLES, 1, *PATCH))]
    assert not (angle and by_kernel)
    want = torch.stack(by_hand(batch)).view(SAMPLES, 2, 1, *PATCH)
    for crop, found in enumerate((background, foreground)):
        near = (found - want[:, crop]).abs()
        # A point on the face of the scan may fall to either side of it.
        assert float((near > 1e-4).float().mean()) < 1e-3
    assert float(want.std()) > 0.1
    torch.testing.assert_close(fused, torch.lerp(background, foreground, label / config.levels))


def test_voxels_stay_on_the_device_of_the_batch(tmp_path: Path) -> None:
    """A device without memory: whoever took a voxel to the host would be refused."""
    batch = a_batch(tmp_path / "store", 20.0).to(torch.device("meta"))
    branch = VolumeFusion(VolumeFusionConfig(block_min=2, block_max=6), build(STUNetConfig(width=2, depth=1), "meta"))
    parts = branch.plan(Scene(batch, PATCH, 2, ViewsConfig(intensity=False))).targets
    assert [part.device.type for part in parts] == ["meta"] * 5
    assert parts[3].shape == (SAMPLES, 1, *PATCH)
