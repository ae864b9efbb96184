import numpy as np
import pytest
import torch
from scipy import special, stats

from voxscale.metrics.head_entropy import head_entropy


def test_it_is_scipys():
    p = special.softmax(np.random.default_rng(0).normal(size=(30, 9)) * 3, axis=1)
    want = stats.entropy(p, axis=1) / np.log(9)
    np.testing.assert_allclose(head_entropy(torch.from_numpy(p)), want)
    np.testing.assert_allclose(head_entropy(torch.from_numpy(p).float()), want, rtol=1e-5)


def test_the_ways_to_collapse_are_told_apart():
    one, all_alike, sure = torch.eye(4)[[2] * 6], torch.full((6, 4), 0.25), torch.eye(4)

    def both(chance):
        return float(head_entropy(chance).mean()), float(head_entropy(chance.mean(0, keepdim=True))[0])

    assert both(one) == pytest.approx((0, 0))
    assert both(all_alike) == pytest.approx((1, 1))  # undecided
    assert both(sure) == pytest.approx((0, 1))  # sure, and all outputs are used
