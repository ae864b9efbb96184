"""Hidden blocks: as many as wanted, each as often as any other, the same for the same seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxscale.augment.hidden_blocks import sample
from voxscale.errors import ConfigError
from voxscale.seed import rng


@given(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 4)), st.floats(0.01, 0.99))
def test_each_sample_has_equally_many_and_never_none_nor_all(grid: tuple[int, int, int], ratio: float) -> None:
    visible = sample([rng(0, "a"), rng(1, "a")], grid, ratio)
    counts = visible.flatten(1).sum(1)
    total = int(np.prod(grid))
    assert visible.shape == (2, *grid)
    assert counts[0] == counts[1] == total - min(max(round(ratio * total), 1), total - 1)
    assert torch.equal(visible[1:], sample([rng(1, "a")], grid, ratio))


def test_every_block_is_hidden_equally_often() -> None:
    shares = 1 - sample([rng(seed, "a") for seed in range(4000)], (2, 2, 2), 0.75).float().mean(0)
    assert shares.sub(0.75).abs().max() < 0.03  # 4.4 deviations


def test_one_block_cannot_be_hidden_in_part() -> None:
    with pytest.raises(ConfigError, match=r"objective.masked_reconstruction.block must be smaller than the patch"):
        sample([rng(0, "a")], (1, 1, 1), 0.5)
