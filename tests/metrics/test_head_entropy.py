import numpy as np
import pytest
import torch
from scipy import special, stats

from voxscale.metrics.head_entropy import head_entropy


def test_both_entropies_are_scipys():
    logits = np.random.default_rng(0).normal(size=(30, 9)) * 3
    p = special.softmax(logits / 0.5, axis=1)
    found = head_entropy(torch.from_numpy(logits), temperature=0.5)
    assert found.each == pytest.approx(stats.entropy(p, axis=1).mean() / np.log(9))
    assert found.usage == pytest.approx(stats.entropy(p.mean(0)) / np.log(9))


def test_the_ways_to_collapse_are_told_apart():
    one = torch.zeros(6, 4)
    one[:, 2] = 1000
    assert head_entropy(one) == pytest.approx((0, 0))
    assert head_entropy(torch.zeros(6, 4)) == pytest.approx((1, 1))  # undecided
    assert head_entropy(1000 * torch.eye(4)) == pytest.approx((0, 1))  # sure, and all outputs are used
