"""The compiled trilinear interpolation gives the bits of torch's, on grids whose axes are those of the volume."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from voxscale.kernel import resample
from voxscale.kernel.resample import sample_along_axes
from voxscale.seed import torch_generator

pytestmark = pytest.mark.skipif(resample.load() is None, reason="needs g++")
SIZES = st.tuples(*[st.integers(2, 9)] * 3)
POINTS = st.tuples(*[st.integers(1, 19)] * 3)


def by_torch(volumes: torch.Tensor, along: list[torch.Tensor]) -> torch.Tensor:
    z, y, x = (axis.view(len(axis), *(-1 if i == k else 1 for i in range(3))) for k, axis in enumerate(along))
    grid = torch.stack(torch.broadcast_tensors(x, y, z), dim=-1)
    return F.grid_sample(volumes, grid, mode="bilinear", padding_mode="border", align_corners=True)


@given(SIZES, POINTS, st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_bits_are_those_of_grid_sample(size: tuple[int, ...], points: tuple[int, ...], seed: int) -> None:
    generator = torch_generator(seed, "resample")
    volumes = torch.randn(2, 1, *size, generator=generator) * 100
    along = [2.6 * torch.rand(2, n, generator=generator) - 1.3 for n in points]  # some lie beyond the ends
    for axis in along:
        axis[0, 0], axis[1, -1] = -1.0, 1.0  # and some on them
    found = sample_along_axes(volumes, along)
    assert found is not None
    assert torch.equal(found, by_torch(volumes, along))


def test_parts_of_larger_tensors_are_read_where_they_are() -> None:
    whole = torch.rand(2, 2, 5, 6, 7, generator=torch_generator(0, "whole"))
    along = [torch.linspace(-1, 1, 4).repeat(2, 1)] * 3
    part = whole[:, 1:, :, ::2]
    found = sample_along_axes(part, along)
    assert found is not None
    assert torch.equal(found, by_torch(part, along))


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4, 1)])
def test_what_is_one_voxel_thick_is_left_to_torch(shape: tuple[int, int, int]) -> None:
    assert sample_along_axes(torch.rand(1, 1, *shape), [torch.zeros(1, 3)] * 3) is None


def test_other_numbers_and_a_missing_kernel_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    along = [torch.zeros(1, 3)] * 3
    assert sample_along_axes(torch.rand(1, 1, 3, 3, 3).double(), along) is None
    monkeypatch.setattr(resample, "load", lambda: None)
    assert sample_along_axes(torch.rand(1, 1, 3, 3, 3), along) is None
