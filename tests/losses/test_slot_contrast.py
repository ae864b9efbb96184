"""The contrast of slots against torch's cross-entropy, slot by slot."""

import math

import pytest
import torch
from torch.nn import functional as F

from voxscale.losses.slot_contrast import slot_contrast
from voxscale.losses.slot_cosine import slot_gap
from voxscale.seed import torch_generator


def case(samples=4, slots=3, width=16):
    generator = torch_generator(0, "contrast")
    predicted, target = (torch.randn(samples, slots, width, generator=generator) for _ in range(2))
    return predicted.requires_grad_(), target.requires_grad_(), torch.ones(samples, slots, dtype=torch.bool)


def by_hand(predicted, target, counted, temperature):
    losses = []
    for slot in range(predicted.shape[1]):
        rows = counted[:, slot].nonzero()[:, 0]
        if len(rows):
            p, t = F.normalize(predicted[rows, slot], dim=1), F.normalize(target[rows, slot].detach(), dim=1)
            losses.append(F.cross_entropy(p @ t.T / temperature, torch.arange(len(rows)), reduction="none"))
    return torch.cat(losses).mean()


def test_it_is_the_cross_entropy_of_each_slot_with_gradient_to_one_side_only():
    predicted, target, counted = case()
    loss = slot_contrast(predicted, target, counted, 0.1)
    assert loss.item() == pytest.approx(by_hand(predicted, target, counted, 0.1).item(), rel=1e-5)
    loss.backward()
    assert predicted.grad.abs().sum() > 0
    assert target.grad is None


def test_what_does_not_count_neither_asks_nor_competes():
    predicted, target, counted = case()
    counted[0, 1] = counted[2, 1] = counted[3, 2] = False
    loss = slot_contrast(predicted, target, counted, 0.1)
    assert loss.item() == pytest.approx(by_hand(predicted, target, counted, 0.1).item(), rel=1e-5)
    loss.backward()
    assert predicted.grad.isfinite().all()
    assert predicted.grad[0, 1].abs().sum() == 0
    assert slot_contrast(predicted, target, torch.zeros_like(counted), 0.1).item() == 0.0


def test_a_constant_prediction_of_a_constant_target_costs_what_guessing_costs():
    """Where `slot_cosine` is 0: a direction that all share earns nothing."""
    predicted = target = torch.ones(5, 2, 8)
    counted = torch.ones(5, 2, dtype=torch.bool)
    assert slot_contrast(predicted, target, counted, 0.1).item() == pytest.approx(math.log(5), rel=1e-5)
    assert slot_gap(predicted, target, counted).item() == pytest.approx(0.0, abs=1e-6)


def test_the_gap_is_that_of_own_and_other_samples_that_count():
    predicted, target, counted = (part.detach() for part in case())
    counted[1, 0] = False
    own, other = [], []
    for slot in range(3):
        for a in range(4):
            for b in range(4):
                if counted[a, slot] and counted[b, slot]:
                    alike = torch.cosine_similarity(predicted[a, slot], target[b, slot], dim=0)
                    (own if a == b else other).append(alike)
    want = torch.stack(own).mean() - torch.stack(other).mean()
    assert slot_gap(predicted, target, counted).item() == pytest.approx(want.item(), abs=1e-6)
    assert slot_gap(predicted[:1], target[:1], counted[:1]).item() == 0.0
