import pytest
import torch

from voxscale.losses.slot_cosine import slot_cosine
from voxscale.seed import torch_generator


def case(width: int = 16):
    generator = torch_generator(0)
    predicted, target = (torch.randn(3, 4, width, generator=generator) for _ in range(2))
    return predicted.requires_grad_(), target.requires_grad_(), torch.ones(3, 4, dtype=torch.bool)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def test_it_is_the_squared_distance_of_unit_vectors_with_gradient_to_one_side_only():
    predicted, target, counted = case()
    loss = slot_cosine(predicted, target, counted)
    assert loss.item() == pytest.approx((unit(predicted) - unit(target)).square().sum(dim=2).mean().item(), rel=1e-6)
    loss.backward()
    assert predicted.grad.abs().sum() > 0
    assert target.grad is None


def test_a_right_direction_in_every_slot_costs_nothing_whatever_the_lengths():
    """Normalising all slots jointly, as the released code of Adam-v2 does, leaves a floor."""
    _, target, counted = case()
    lengths = torch.tensor([0.1, 1.0, 10.0, 3.0]).view(1, 4, 1)
    assert slot_cosine(lengths * target, target, counted).item() == pytest.approx(0.0, abs=1e-6)
    joint = unit((lengths * target).flatten(1)).view(3, 4, 16)
    assert (joint - unit(target)).square().mean().item() > 1e-3


@pytest.mark.parametrize("width", [16, 2048])
def test_the_gradient_does_not_vanish_with_the_width(width: int):
    """A mean over features divides it by the width: the released code's defect."""
    predicted, target, counted = case(width)
    slot_cosine(predicted, target, counted).backward()
    ours = predicted.grad.clone()
    predicted.grad = None
    (unit(predicted) - unit(target.detach())).square().mean().backward()
    torch.testing.assert_close(ours, width * predicted.grad)


def test_slots_that_do_not_count_change_nothing():
    predicted, target, counted = case()
    counted[0, 1] = counted[2, 3] = False
    rest = (2 - 2 * torch.cosine_similarity(predicted, target, dim=2))[counted].mean()
    assert slot_cosine(predicted, target, counted).item() == pytest.approx(rest.item(), rel=1e-6)
    slot_cosine(predicted, target, counted).backward()
    assert predicted.grad[0, 1].abs().sum() == 0
    assert slot_cosine(predicted, target, torch.zeros_like(counted)).item() == 0.0
