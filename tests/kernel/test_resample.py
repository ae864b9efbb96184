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


def test_values_are_scaled_and_bounded_with_the_bits_of_torch() -> None:
    volumes = torch.randn(2, 1, 5, 6, 7, generator=torch_generator(0, "scaled")) * 100
    volumes[0, 0, 0, 0, 0], volumes[0, 0, 4, 5, 6], volumes[1, 0, 0, 0, 0] = torch.nan, torch.inf, -torch.inf
    along, scale = [torch.linspace(-1, 1, n).repeat(2, 1) for n in (9, 10, 23)], torch.tensor([[0.01, 0.3], [-0.2, 0]])
    found = sample_along_axes(volumes, along, scale)
    assert found is not None
    plain = sample_along_axes(volumes, along)
    assert plain is not None
    factor, offset = (scale[:, k].view(-1, 1, 1, 1, 1) for k in (0, 1))
    want = plain.mul_(factor).add_(offset).clamp_(0, 1)
    assert want.isnan().any()
    assert (want == 0).any()
    assert (want == 1).any()
    assert torch.equal(found.nan_to_num(7), want.nan_to_num(7))


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4, 1)])
def test_what_is_one_voxel_thick_is_left_to_torch(shape: tuple[int, int, int]) -> None:
    assert sample_along_axes(torch.rand(1, 1, *shape), [torch.zeros(1, 3)] * 3) is None


def test_other_numbers_and_a_missing_kernel_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    along = [torch.zeros(1, 3)] * 3
    assert sample_along_axes(torch.rand(1, 1, 3, 3, 3).double(), along) is None
    monkeypatch.setattr(resample, "load", lambda: None)
    assert sample_along_axes(torch.rand(1, 1, 3, 3, 3), along) is None
