import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from voxscale.errors import DataError
from voxscale.losses.cross_entropy import cross_entropy
from voxscale.seed import torch_generator


def case(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch_generator(seed)
    logits = 5 * torch.randn(2, 4, 3, 4, 5, generator=generator)
    return logits, torch.randint(0, 4, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)


def test_equals_torch_with_gradient() -> None:
    logits, target = case(0)
    logits.requires_grad_()
    want = F.cross_entropy(logits, target.long())
    got = cross_entropy(logits, target)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, logits), torch.autograd.grad(want, logits))


def test_hand_computed() -> None:
    logits = torch.tensor([0.0, math.log(3), 50.0, 0.0]).view(2, 2).T.reshape(1, 2, 2, 1, 1)
    target = torch.tensor([1, 1], dtype=torch.uint8).view(1, 2, 1, 1)
    assert cross_entropy(logits, target).item() == pytest.approx((math.log(4 / 3) + 50) / 2)


def test_mask_excludes_voxels() -> None:
    logits, target = case(1)
    logits.requires_grad_()
    mask = torch.rand(target.shape, generator=torch_generator(2)) > 0.5
    got = cross_entropy(logits, target, mask)
    torch.testing.assert_close(got, F.cross_entropy(logits, target.long().masked_fill(~mask, -100), ignore_index=-100))
    got.backward()
    assert not logits.grad.movedim(1, -1)[~mask].any()


def test_empty_mask_gives_zero() -> None:
    logits, target = case(1)
    logits.requires_grad_()
    loss = cross_entropy(logits, target, torch.zeros(target.shape, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_bfloat16_is_computed_in_float32() -> None:
    logits, target = case(3)
    low = (100 * logits).bfloat16().requires_grad_()
    loss = cross_entropy(low, target)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(low.float(), target.long()))
    assert low.grad.isfinite().all()


def test_bad_shapes_are_refused() -> None:
    logits, target = case(4)
    with pytest.raises(DataError, match=r"^target must"):
        cross_entropy(logits, target[:, 1:])
    with pytest.raises(DataError, match=r"^mask must"):
        cross_entropy(logits, target, torch.ones(1, 3, 4, 5, dtype=torch.bool))


def test_label_beyond_the_classes_fails() -> None:
    logits, target = case(5)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        cross_entropy(logits[:, :2], target)
