import numpy as np
import pytest
import torch

from voxscale.metrics.embedding_std import embedding_std


def test_by_hand_and_in_numpy():
    assert embedding_std(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(0.5 * 2**0.5)
    data = np.random.default_rng(0).normal(size=(20, 7))
    unit = data / np.linalg.norm(data, axis=1, keepdims=True)
    assert embedding_std(torch.from_numpy(data)) == pytest.approx(unit.std(0).mean() * 7**0.5)


def test_one_direction_gives_0_and_the_whole_sphere_1():
    ray = torch.arange(1, 9.0)[:, None] * torch.tensor([[0.3, -0.2, 0.5]])
    assert embedding_std(ray) == pytest.approx(0, abs=1e-7)
    sphere = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert embedding_std(sphere) == pytest.approx(1, abs=0.01)
