"""Directions of vectors, also of those that have hardly one."""

import pytest
import torch

from voxscale.direction import LEAST, direction
from voxscale.seed import torch_generator


def vectors() -> torch.Tensor:
    return torch.randn(6, 5, 3, generator=torch_generator(0, "direction"), dtype=torch.float64)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_it_is_the_unit_vector(dim: int) -> None:
    x = vectors()
    found = direction(x, dim)
    torch.testing.assert_close(found.norm(dim=dim), torch.ones_like(found.norm(dim=dim)))
    torch.testing.assert_close(found * x.norm(dim=dim, keepdim=True), x)


def test_the_shorter_a_vector_the_less_it_counts() -> None:
    unit = torch.nn.functional.normalize(vectors(), dim=2)
    lengths = [direction(unit * LEAST * share, 2).norm(dim=2).mean().item() for share in (0.0, 1e-3, 0.5, 1.0, 2.0)]
    assert lengths == pytest.approx([0.0, 1e-6, 0.25, 1.0, 1.0])


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-8, 0.5 * LEAST, 2 * LEAST, 1.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_its_gradient_is_bounded_and_none_at_zero(length: float, kind: torch.dtype) -> None:
    x = (torch.nn.functional.normalize(vectors()[0], dim=1) * length).to(kind).requires_grad_()
    jacobian = torch.stack([torch.autograd.grad(direction(x, 1)[:, i].sum(), x)[0] for i in range(3)], dim=1)
    assert jacobian.isfinite().all()
    largest = torch.linalg.matrix_norm(jacobian.double(), ord=2).max().item()
    assert largest <= 2.05 / LEAST
    if length <= 1e-8:
        assert largest <= 2.05 * length / LEAST**2


def test_its_gradient_is_right() -> None:
    for length in (0.3 * LEAST, 1.7 * LEAST, 1.0):
        x = (torch.nn.functional.normalize(vectors()[0], dim=1) * length).requires_grad_()
        assert torch.autograd.gradcheck(lambda v: direction(v, 1), (x,), eps=1e-6 * length, atol=1e-4 / length)
