"""Errors by hand, and nothing from voxels that do not count."""

import pytest
import torch

from voxscale.errors import DataError
from voxscale.losses.masked_reconstruction import masked_error, normalise_blocks
from voxscale.seed import torch_generator


def test_error_is_the_mean_over_counted_voxels_of_each_sample() -> None:
    truth = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]).view(3, 1, 1, 1, 2)
    guess = torch.tensor([[2.0, float("nan")], [1.0, 3.0], [5.0, 5.0]]).view(3, 1, 1, 1, 2).requires_grad_()
    counted = torch.tensor([[True, False], [True, True], [False, False]]).view(3, 1, 1, 1, 2)
    loss = masked_error(guess, truth, counted, "l2")
    assert loss.item() == pytest.approx((4 + (1 + 9) / 2 + 0) / 3)
    assert masked_error(guess, truth, counted, "l1").item() == pytest.approx((2 + (1 + 3) / 2 + 0) / 3)
    loss.backward()
    assert guess.grad is not None
    torch.testing.assert_close(guess.grad.flatten(), torch.tensor([4 / 3, 0, 1 / 3, 1, 0, 0]))
    with pytest.raises(DataError, match="must have one shape"):
        masked_error(guess, truth[..., :1], counted, "l2")


def test_blocks_are_normalised_each_by_its_counted_voxels() -> None:
    images = torch.rand(2, 1, 4, 4, 6, generator=torch_generator(0, "a"))
    counted = torch.rand(images.shape, generator=torch_generator(0, "b")) < 0.7
    found, mean, deviation = normalise_blocks(images, counted, (2, 4, 3), eps=0.0)
    block, here = images[1, 0, 2:, :, 3:], counted[1, 0, 2:, :, 3:]
    want = (block - block[here].mean()) / block[here].std(correction=0)
    torch.testing.assert_close(found[1, 0, 2:, :, 3:], want)
    torch.testing.assert_close(found * deviation + mean, images)
    flat, *_ = normalise_blocks(torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool), (1, 2, 2))
    assert flat.isfinite().all()
