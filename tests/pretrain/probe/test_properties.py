"""Parts, wholes and lines of crops whose embeddings are made by hand."""

import pytest
import torch

from pretrain.probe.data import Unlabelled
from pretrain.probe.properties import Embedded, find_splits, make_tiles, property_figures
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.parts import split

MM = (1.0, 1.0, 1.0)
NAMES = {"compose_gap", "decompose_slots", "decompose_scans", "interpolation_gap"}


@pytest.fixture(scope="module")
def data():
    images = 0.2 + 0.8 * torch.rand(12, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    images[0, :, :8] = 0  # half of the first crop is air
    inside = torch.ones(12, 16, 16, 16, dtype=torch.bool)
    return Unlabelled(images, inside, tuple(range(6)) * 2)


def embedded(tiles, signal, seed=1):
    """Embeddings that add up along lines and parts as far as `signal` says."""
    draw = torch.Generator().manual_seed(seed)
    n, p, m = *tiles.counted.shape, len(tiles.segments)

    def noise(*size):
        return torch.randn(*size, 64, generator=draw)

    parts, a, b = noise(n, p), noise(m), noise(m)
    weights = tiles.counted[:, :, None].float()
    mean = (parts * weights).sum(1) / weights.sum(1)
    windows = torch.stack([a, b, signal * (a + b) / 2 + (1 - signal) * noise(m), noise(m)], dim=1)
    return Embedded(
        whole=signal * mean + (1 - signal) * noise(n),
        slots=signal * parts + (1 - signal) * noise(n, p),
        parts=parts,
        windows=windows,
    )


def test_what_is_found_goes_away_with_shuffling_and_without_signal(data):
    tiles = make_tiles(data, (2, 2, 2), MM, seed=0)
    found = property_figures(embedded(tiles, 1.0), tiles, data.subjects, 0)
    assert found.keys() == NAMES
    assert all(one.value > 0.9 for one in found.values())
    assert all(one.low <= one.value <= one.high for one in found.values())
    chance = {"decompose_slots": 1 / 8, "decompose_scans": 1 / 11}
    for signal, kind in ((1.0, "controls"), (0.0, "value")):
        for name, one in property_figures(embedded(tiles, signal), tiles, data.subjects, 0).items():
            left = one.controls["shuffled_features"] if kind == "controls" else one.value
            assert left == pytest.approx(chance.get(name, 0.0), abs=0.16), (name, kind)


def test_parts_tile_the_crop_and_windows_lie_on_lines_of_equal_length_in_mm(data):
    coordinate = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    mm = (2.0, 1.0, 1.0)
    tiles = make_tiles(data, (2, 2, 2), mm, seed=0)
    assert tiles.parts.equal(split(data.images, (2, 2, 2)).flatten(0, 1))
    assert tiles.counted[0].tolist() == [False] * 4 + [True] * 4
    assert bool(tiles.counted[1:].all())
    assert 11 <= len(tiles.segments) <= 12
    firsts = []
    for axis in range(3):
        bent = Unlabelled(0.1 + coordinate[axis].expand(12, 1, -1, -1, -1), data.inside, data.subjects)
        cut = make_tiles(bent, (2, 2, 2), mm, seed=0)
        firsts.append(cut.windows[:, 0, 0, 0, 0].view(-1, 4) - 0.1)
    start, end, half, aside = torch.stack(firsts).unbind(2)
    assert (start + end).allclose(2 * half)
    along, across = ((one - start) * torch.tensor(mm)[:, None] for one in (half, aside))
    assert along.norm(dim=0).allclose(across.norm(dim=0))
    assert (along * across).sum(0).abs().max() < 1e-4
    assert along.norm(dim=0).min() > 1


def test_too_few_subjects_say_nothing(data):
    few = Unlabelled(data.images, data.inside, (0, 1) * 6)
    tiles = make_tiles(few, (2, 2, 2), MM, seed=0)
    assert property_figures(embedded(tiles, 1.0), tiles, few.subjects, 0) == {}


def test_as_many_parts_as_the_network_takes():
    step = (2, 2, 2)
    net = build(STUNetConfig(width=2, depth=1, classes=0, heads=0, strides=(step, step, step, (1, 1, 1), (1, 1, 1))))
    assert find_splits(net, (16, 32, 32), MM) == (2, 2, 2)
    assert find_splits(net, (8, 32, 16), MM) == (1, 2, 2)
    assert find_splits(net, (8, 32, 8), MM) == (1, 2, 1)
    assert find_splits(net, (8, 8, 8), MM) is None
    flat = (1, 2, 2)
    images = build(STUNetConfig(width=2, depth=1, dims=2, classes=0, heads=0, strides=(flat,) * 3 + ((1, 1, 1),) * 2))
    assert find_splits(images, (1, 32, 32), MM) == (1, 2, 2)
