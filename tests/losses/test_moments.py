"""Running moments against a weighted sum that is written out."""

import pytest
import torch

from voxscale.losses.moments import Moments
from voxscale.seed import torch_generator


def batches(count=4, samples=6):
    generator = torch_generator(0, "moments")
    return [torch.randn(samples, 2, 3, generator=generator) * 2 + 5 + at for at in range(count)]


def test_moments_are_those_of_all_batches_with_weights_that_fade():
    moments, counted = Moments(2, 3, momentum=0.8), torch.ones(6, 2, dtype=torch.bool)
    seen = batches()
    for batch in seen:
        moments.update(batch, counted)
    weights = torch.tensor([0.8**k for k in (3, 2, 1, 0)])
    share = (weights / weights.sum()).repeat_interleave(6)[:, None, None] / 6
    every = torch.cat(seen)
    mean = (every * share).sum(dim=0)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.variance, ((every - mean).square() * share).sum(dim=0), rtol=1e-4, atol=1e-5)


def test_the_first_batch_and_a_momentum_of_0_leave_nothing_of_what_was_before():
    for momentum, seen in ((0.9, batches(1)), (0.0, batches(3))):
        moments, counted = Moments(2, 3, momentum), torch.ones(6, 2, dtype=torch.bool)
        for batch in seen:
            moments.update(batch, counted)
        found = moments.apply_to(seen[-1], "standard")
        torch.testing.assert_close(found.mean(dim=0), torch.zeros(2, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.var(dim=0, unbiased=False), torch.ones(2, 3), atol=1e-4, rtol=0)
        less = moments.apply_to(seen[-1], "centred")
        torch.testing.assert_close(less, seen[-1] - seen[-1].mean(dim=0), atol=1e-5, rtol=0)
        assert moments.apply_to(seen[-1], "plain") is seen[-1]


def test_what_does_not_count_is_left_out_and_a_slot_without_any_stays():
    moments = Moments(2, 3, momentum=0.8)
    counted = torch.ones(6, 2, dtype=torch.bool)
    first, second = batches(2)
    moments.update(first, counted)
    kept = [value.clone() for value in moments.buffers()]
    counted[:, 0] = False
    counted[2:, 1] = False
    second[2:, 1] = 1e6
    moments.update(second, counted)
    for before, now in zip(kept, moments.buffers(), strict=True):
        assert torch.equal(before[0], now[0])
    want = (0.8 * first[:, 1].mean(dim=0) + second[:2, 1].mean(dim=0)) / 1.8
    torch.testing.assert_close(moments.mean[1], want)
    assert not moments.apply_to(second, "standard").isnan().any()


def test_moments_are_constants_to_the_gradient_and_state_that_is_taken_back():
    moments, batch = Moments(2, 3, momentum=0.8), batches(1)[0]
    assert {"mean", "variance", "weight"} == moments.state_dict().keys()
    assert moments.track_running_stats  # see `voxscale.models.recompute.running_statistics`
    moments.update(batch, torch.ones(6, 2, dtype=torch.bool))
    x = batch.clone().requires_grad_()
    moments.apply_to(x, "standard").sum().backward()
    torch.testing.assert_close(x.grad, moments.variance.rsqrt().expand(6, 2, 3))
    moments.reset()
    assert moments.apply_to(batch, "standard").numpy() == pytest.approx(batch.numpy(), rel=1e-6)
