"""Distances to nearest neighbours against those found one by one."""

import math

import pytest
import torch

from voxscale.losses.koleo import koleo_loss
from voxscale.seed import torch_generator


def case(samples=5, slots=3, width=4):
    generator = torch_generator(0, "koleo")
    return torch.randn(samples, slots, width, generator=generator), torch.ones(samples, slots, dtype=torch.bool)


def by_hand(embedded, counted, eps=1e-4):
    losses = []
    units = [
        [row / math.sqrt(sum(v * v for v in row)) for row in map(torch.Tensor.double, sample)] for sample in embedded
    ]
    for slot in range(embedded.shape[1]):
        rows = [n for n in range(len(embedded)) if counted[n, slot]]
        for row in rows:
            others = [float((units[row][slot] - units[n][slot]).norm()) for n in rows if n != row]
            if others:
                losses.append(-math.log(min(others) + eps))
    return sum(losses) / max(len(losses), 1)


def test_it_is_the_log_of_the_distance_to_the_nearest_that_counts():
    embedded, counted = case()
    assert koleo_loss(embedded, counted).item() == pytest.approx(by_hand(embedded, counted), abs=1e-4)
    counted[0, 0] = counted[1:, 1] = False
    assert koleo_loss(embedded, counted).item() == pytest.approx(by_hand(embedded, counted), abs=1e-4)
    assert koleo_loss(embedded * 7, counted).item() == pytest.approx(koleo_loss(embedded, counted).item(), abs=1e-4)


def test_its_gradient_moves_what_counts_apart_and_nothing_else():
    embedded, counted = case()
    counted[0, 0] = False
    shared = (0.1 * embedded + 1).requires_grad_()
    loss = koleo_loss(shared, counted)
    loss.backward()
    assert shared.grad[0, 0].abs().sum() == 0
    moved = (shared - 0.01 * shared.grad).detach()
    assert koleo_loss(moved, counted) < loss


def test_samples_that_are_the_same_and_single_ones_cost_something_finite():
    embedded, counted = torch.ones(3, 2, 4, requires_grad=True), torch.ones(3, 2, dtype=torch.bool)
    loss = koleo_loss(embedded, counted)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-4), rel=1e-2)
    assert embedded.grad.isfinite().all()
    assert koleo_loss(embedded[:1], counted[:1]).item() == 0.0
    assert koleo_loss(embedded, torch.zeros_like(counted)).item() == 0.0
