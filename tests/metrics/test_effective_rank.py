import numpy as np
import pytest
import torch
from scipy import stats

from voxscale.metrics.effective_rank import effective_rank


def test_it_is_the_exponential_of_the_entropy_of_the_singular_values():
    data = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 0.1, 0.01]
    shares = np.linalg.svd(data - data.mean(0), compute_uv=False)
    assert effective_rank(torch.from_numpy(data)) == pytest.approx(np.exp(stats.entropy(shares)), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_equal_directions_count_as_many_as_they_are(rank):
    rows = torch.cat([torch.eye(8)[:rank], -torch.eye(8)[:rank]]) + 3.0  # the shift is common to all
    assert effective_rank(rows) == pytest.approx(rank, rel=1e-6)


def test_equal_rows_have_none():
    assert effective_rank(torch.full((10, 4), 0.1)) == 0.0


def test_neither_scale_nor_rotation_nor_shift_change_it():
    data = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    assert effective_rank(7 * data @ turn + 2) == pytest.approx(effective_rank(data), rel=1e-9)
