import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss
from torch import Tensor

from voxscale.errors import DataError
from voxscale.losses.dice import soft_dice_loss
from voxscale.seed import torch_generator


def case(seed: int, batch: int = 2, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch_generator(seed)
    logits = 3 * torch.randn(batch, classes, 4, 5, 6, generator=generator)
    target = torch.randint(0, classes, (batch, 4, 5, 6), generator=generator, dtype=torch.uint8)
    return logits, target


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_equals_monai_with_gradient(pooled: bool, background: bool, eps: float) -> None:
    logits, target = case(0)
    logits.requires_grad_()
    theirs = DiceLoss(
        include_background=background, to_onehot_y=True, softmax=True, smooth_nr=eps, smooth_dr=eps, batch=pooled
    )
    want = theirs(logits, target.unsqueeze(1))
    (want_gradient,) = torch.autograd.grad(want, logits)
    got = soft_dice_loss(logits, target, pooled=pooled, background=background, eps=eps)
    (gradient,) = torch.autograd.grad(got, logits)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-4, atol=1e-8)


def test_hand_computed() -> None:
    # Two voxels with foreground probabilities 3/4 and 1/5; the first is foreground.
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]]).T.reshape(1, 2, 2, 1, 1)
    target = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 2, 1, 1)
    foreground = 2 * 0.75 / (0.75 + 0.2 + 1)
    background = 2 * 0.8 / (0.25 + 0.8 + 1)
    got = soft_dice_loss(logits, target, pooled=True, background=False, eps=0.0)
    assert got.item() == pytest.approx(1 - foreground)
    got = soft_dice_loss(logits, target, pooled=True, background=True, eps=0.0)
    assert got.item() == pytest.approx(1 - (foreground + background) / 2)
    got = soft_dice_loss(logits, target, pooled=True, background=False, eps=0.5)
    assert got.item() == pytest.approx(1 - 2.0 / 2.45)


def test_pooling_shares_the_denominator() -> None:
    # Class 1 gets half the probability on both of its voxels in sample 0, and all of it on its one voxel in sample 1.
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[-50.0, 50.0], [50.0, -50.0]]]).reshape(2, 2, 2, 1, 1)
    target = torch.tensor([[1, 1], [1, 0]], dtype=torch.uint8).reshape(2, 2, 1, 1)
    apart = (2 * 1 / (1 + 2) + 1) / 2
    assert soft_dice_loss(logits, target, pooled=False, background=False, eps=0.0).item() == pytest.approx(1 - apart)
    together = 2 * (1 + 1) / ((1 + 1) + (2 + 1))
    assert soft_dice_loss(logits, target, pooled=True, background=False, eps=0.0).item() == pytest.approx(1 - together)


@given(seed=st.integers(0, 1000), pooled=st.booleans())
@settings(max_examples=25, deadline=None)
def test_masked_voxels_do_not_count(seed: int, pooled: bool) -> None:
    logits, target = case(seed)
    mask = torch.zeros(target.shape, dtype=torch.bool)
    mask[:, 1:3, :4, 2:] = True
    inner = (slice(None), slice(1, 3), slice(None, 4), slice(2, None))
    want = soft_dice_loss(logits[:, :, 1:3, :4, 2:], target[inner], pooled=pooled, background=True)
    torch.testing.assert_close(soft_dice_loss(logits, target, pooled=pooled, background=True, mask=mask), want)
    noise = torch.where(mask.unsqueeze(1), logits, -logits.flip(1))
    other = torch.where(mask, target, 3 - target)
    torch.testing.assert_close(soft_dice_loss(noise, other, pooled=pooled, background=True, mask=mask), want)


def test_masked_voxels_get_no_gradient() -> None:
    logits, target = case(1)
    logits.requires_grad_()
    mask = torch.rand(target.shape, generator=torch_generator(2)) > 0.5
    soft_dice_loss(logits, target, pooled=True, background=False, mask=mask).backward()
    assert not logits.grad.movedim(1, -1)[~mask].any()
    assert logits.grad.movedim(1, -1)[mask].any(1).all()


@pytest.mark.parametrize("pooled", [True, False])
def test_extremes(pooled: bool) -> None:
    _, target = case(3)
    perfect = 100 * torch.nn.functional.one_hot(target.long(), 4).movedim(-1, 1).float()
    assert soft_dice_loss(perfect, target, pooled=pooled, background=True).item() == pytest.approx(0, abs=1e-6)
    wrong = 100 * torch.nn.functional.one_hot((target.long() + 1) % 4, 4).movedim(-1, 1).float()
    assert soft_dice_loss(wrong, target, pooled=pooled, background=True).item() == pytest.approx(1, abs=1e-5)


def test_class_absent_everywhere_counts_as_right_when_given_no_probability() -> None:
    target = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    sure = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)
    assert soft_dice_loss(sure, target, pooled=True, background=False).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, target = case(4)
    low = (20 * logits).to(dtype).requires_grad_()
    loss = soft_dice_loss(low, target, pooled=True, background=True)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_dice_loss(low.float(), target, pooled=True, background=True))
    assert low.grad.dtype == dtype
    assert low.grad.isfinite().all()
    assert low.grad.any()


def test_sums_stay_exact_beyond_the_precision_of_float32() -> None:
    # One class, 2^21 + 2^20 voxels of probability near 0.3: a running float32 sum goes wrong by a sixth.
    voxels = (3, 1024, 1024)
    logits = torch.zeros(1, 2, *voxels)
    logits[:, 0] = math.log(0.7 / 0.3)
    target = torch.ones(1, *voxels, dtype=torch.uint8)
    n, p = float(np.prod(voxels)), 0.3
    want = 1 - 2 * n * p / (n * p + n)
    assert soft_dice_loss(logits, target, pooled=True, background=False).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("logits", "target", "mask", "background", "name"),
    [
        ((2, 3, 4, 4, 4), (2, 4, 4, 5), None, True, "target"),
        ((2, 3, 4, 4, 4), (2, 2, 2, 2), None, True, "target"),
        ((2, 3, 4, 4, 4), (1, 4, 4, 4), None, True, "target"),
        ((2, 3, 4, 4, 4), (2, 4, 4, 4), (1, 4, 4, 4), True, "mask"),
        ((2, 1, 4, 4, 4), (2, 4, 4, 4), None, False, "logits"),
    ],
)
def test_bad_shapes_are_refused(logits: tuple, target: tuple, mask: tuple | None, background: bool, name: str) -> None:
    labels = torch.zeros(target, dtype=torch.uint8)
    where = None if mask is None else torch.ones(mask, dtype=torch.bool)
    with pytest.raises(DataError, match=f"^{name} must"):
        soft_dice_loss(torch.zeros(logits), labels, pooled=True, background=background, mask=where)
