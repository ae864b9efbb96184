"""Copies are found whatever was done to them, and different scans are told apart."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_prep.descriptor import POINTS, Descriptor, describe, read_descriptor
from data_prep.similar import LEAST, agreement, agreements, build, find_pairs, make_table
from voxscale.io import load_file
from voxscale.seed import rng

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SPACING = (3.0, 2.0, 2.0)


def scan(number, shape=(50, 70, 75)):
    """Blobs of many sizes."""
    generator = rng(number, "blobs")
    return sum(s * ndimage.gaussian_filter(generator.normal(0, 1, shape), s) for s in (1.5, 3, 6)).astype(np.float32)


CHANGES = {
    "same": lambda x: (x, SPACING),
    "mirrored": lambda x: (x[:, :, ::-1], SPACING),
    "turned": lambda x: (x.transpose(0, 2, 1)[:, ::-1], SPACING),
    "cropped": lambda x: (x[5:, 8:, :-9], SPACING),
    "resampled": lambda x: (ndimage.zoom(x, (1.5, 0.8, 0.8), order=1, grid_mode=True, mode="nearest"), (2.0, 2.5, 2.5)),
    "noisy": lambda x: (x + rng(0, "n").normal(0, 0.1 * x.std(), x.shape), SPACING),
    "rescaled": lambda x: (-40 + 7 * x, SPACING),
    "8 bit": lambda x: (np.rint(255 * np.clip((x - x.min()) / np.ptp(x), 0.05, 0.95)), SPACING),
    "gamma": lambda x: (((x - x.min()) / np.ptp(x)) ** 1.3, SPACING),
}


def made(values, spacing=SPACING):
    return describe(np.ascontiguousarray(values, dtype=np.float32), spacing)


def table(descriptors):
    return make_table(descriptors, len(descriptors))


@pytest.fixture(scope="module")
def known():
    return [made(scan(number)) for number in range(6)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_and_nothing_else(known, change):
    values, spacing = CHANGES[change](scan(2))
    pairs = find_pairs(table([made(values, spacing)]), table(known))
    assert [(pair.a, pair.b) for pair in pairs] == [(0, 2)]
    assert pairs[0].score >= 2 * LEAST


def test_pairs_within_a_set_are_told_once(known):
    pairs = find_pairs(table([*known, known[3]]))
    assert [(pair.a, pair.b) for pair in pairs] == [(3, 6)]


def test_the_index_proposes_as_comparing_all_does(known, monkeypatch):
    from data_prep import similar

    queries = [made(CHANGES["noisy"](scan(number))[0]) for number in range(6)]
    monkeypatch.setattr(similar, "EXACT_UP_TO", 0)
    assert sorted((pair.a, pair.b) for pair in find_pairs(table(queries), table(known))) == [(n, n) for n in range(6)]
    vectors = np.stack([each.overall for each in known])
    assert [int(build(vectors).search(vector, 1).keys[0]) for vector in vectors] == list(range(6))


def test_a_pair_is_found_whichever_side_proposes_it(known, monkeypatch):
    from data_prep import similar

    many = [*known, made(CHANGES["cropped"](scan(5))[0]), known[0]]
    whole = find_pairs(table(many))
    assert sorted((pair.a, pair.b) for pair in whole) == [(0, 7), (5, 6)]
    for near in ([[1], [0], [0], [0], [0], [0], [5], [0]], [[7], [0], [0], [0], [0], [6], [0], [1]]):
        monkeypatch.setattr(similar, "propose", lambda *_, near=near: np.array(near))
        assert find_pairs(table(many)) == whole


def test_a_table_on_disk_is_that_in_memory(known, tmp_path):
    kept, held = make_table(known, len(known), tmp_path), table(known)
    for name in ("looks", "points", "counts", "overall"):
        assert np.array_equal(getattr(kept, name), getattr(held, name))
    numbers = np.arange(len(known))
    assert agreements(kept, 2, kept, numbers) == agreements(held, 2, held, numbers)
    one_by_one = [agreement(known[2], other) for other in known]
    assert agreements(held, 2, held, numbers) == one_by_one


def test_agreement_is_symmetric(known):
    other = made(CHANGES["cropped"](scan(2))[0])
    assert agreement(known[2], other) == agreement(other, known[2])


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 5, 6), (1, 300, 300), (3, 1, 64, 64)])
def test_any_shape_has_a_descriptor(shape):
    found = describe(rng(0, "any").normal(size=shape).astype(np.float32), (1.0, 1.0, 1.0))
    assert len(found.points) == len(found.looks) <= POINTS
    assert np.isfinite(found.overall).all()
    assert describe(np.zeros(shape, np.float32), (1.0, 1.0, 1.0)).points.shape == (0, 3)


@pytest.mark.parametrize("shape", [(50, 70, 75), (200, 20, 30), (3, 120, 130), (1, 300, 300)])
def test_a_grid_that_is_not_kept_is_described_alike(shape, monkeypatch):
    values = scan(1, shape)
    kept = describe(values, SPACING)
    monkeypatch.setattr("data_prep.descriptor.KEPT_CELLS", 0)
    monkeypatch.setattr("data_prep.descriptor.KEPT_SHARE", 0.0)
    monkeypatch.setattr("data_prep.descriptor.TOGETHER", 4000)
    monkeypatch.setattr("voxscale.kernel.coarse.BLOCK", 20_000)
    assert len(kept.points) > 5
    assert describe(values, SPACING).to_bytes() == kept.to_bytes()


def test_as_bytes(known):
    found = read_descriptor(known[0].to_bytes())
    assert isinstance(found, Descriptor)
    assert np.array_equal(found.looks, known[0].looks)
    assert len(known[0].to_bytes()) < 5000
    assert read_descriptor(b"damaged") is None
    assert read_descriptor(b"") is None


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="real scans are not here")
def test_different_real_scans_are_told_apart():
    paths = sorted([*DATA.glob("*_unlabelled/*"), *DATA.glob("labelled/sarcoma_*/images/*")])
    volumes = [load_file(path).volume() for path in paths]
    found = [describe(volume.values(), volume.spacing) for volume in volumes]
    assert find_pairs(table(found)) == []
    half = [describe(v.values()[:, : int(0.8 * v.shape[1]), ::-1].copy(), v.spacing) for v in volumes]
    recall = np.mean([agreement(a, b) >= LEAST for a, b in zip(found, half, strict=True)])
    assert recall >= 0.9
