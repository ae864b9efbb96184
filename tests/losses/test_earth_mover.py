import pytest
import torch
from scipy.stats import wasserstein_distance

from voxscale.errors import DataError
from voxscale.losses.earth_mover import earth_mover_loss
from voxscale.seed import torch_generator


def test_by_hand():
    sure = torch.full((1, 3, 1, 1, 3), -1e4)
    sure[0, 0] = 1e4  # class 0 everywhere
    target = torch.tensor([[[[0, 1, 2]]]], dtype=torch.uint8)
    assert earth_mover_loss(sure, target).item() == pytest.approx((0 + 1 / 2 + 2 / 2) / 3)
    half = torch.zeros(1, 2, 1, 1, 1)
    assert earth_mover_loss(half, torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item() == pytest.approx(0.25)


def test_of_hard_guesses_it_is_the_distance_that_scipy_moves_earth():
    classes, values = 5, range(5)
    for guess in values:
        for true in values:
            logits = torch.full((1, classes, 1, 1, 1), -1e4)
            logits[0, guess] = 1e4
            far = wasserstein_distance([guess], [true])
            found = earth_mover_loss(logits, torch.full((1, 1, 1, 1), true, dtype=torch.uint8))
            assert found.item() == pytest.approx(far / (classes - 1))


def test_masked_voxels_do_not_count_and_the_gradient_is_that_of_differences():
    generator = torch_generator(0, "emd")
    logits = torch.randn(2, 4, 2, 2, 2, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 2, 2, 2), generator=generator, dtype=torch.uint8)
    mask = torch.rand(2, 2, 2, 2, generator=generator) < 0.5
    other = torch.where(mask, target, 3 - target)
    assert earth_mover_loss(logits, target, mask) == earth_mover_loss(logits, other, mask)
    assert earth_mover_loss(logits, target, torch.zeros_like(mask)).item() == 0
    x = logits.float().requires_grad_()
    earth_mover_loss(x, target, mask).backward()
    step = torch.zeros_like(x)
    step[0, 1, 0, 1, 1] = 1e-2
    up, down = (earth_mover_loss(x.detach() + s * step, target, mask).item() for s in (1, -1))
    assert x.grad[0, 1, 0, 1, 1].item() == pytest.approx((up - down) / 2e-2, abs=2e-5)


def test_shapes_that_do_not_fit_are_refused():
    target = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="target must have the grid"):
        earth_mover_loss(torch.zeros(1, 3, 2, 2, 1), target)
    with pytest.raises(DataError, match="mask must have the shape"):
        earth_mover_loss(torch.zeros(1, 3, 2, 2, 2), target, torch.ones(1, 2, 2, 1, dtype=torch.bool))
    with pytest.raises(DataError, match="2 or more classes, not 1"):
        earth_mover_loss(torch.zeros(1, 1, 2, 2, 2), target)
