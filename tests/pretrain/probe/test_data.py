"""What is probed is chosen by hand-checkable rules, the same in every run of a seed."""

import dataclasses

import pytest
import torch
from tests_stores import make_store

from pretrain.probe.config import ProbeConfig
from pretrain.probe.data import choose_examples, choose_queries, deal, read_labelled
from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.seed import rng

CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
PATCH = (16, 16, 16)
PROBE = ProbeConfig(cases=3, crops=2, examples=40, queries=300, folds=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "task"
    make_store(path, 4, labelled=True)
    return path


def test_crops_are_upright_and_labels_lie_on_what_they_name(store):
    """In every scan the ball stands before the box, and the box is brighter than the body around."""
    data = read_labelled(dataclasses.replace(PROBE, labelled=store), PATCH, CONTRACT, seed=0)
    assert data.images.shape == (6, 1, *PATCH)
    assert data.classes == (0, 1, 2)
    both = 0
    for image, label in zip(data.images[:, 0], data.labels, strict=True):
        assert label.any()
        if all((label == value).sum() > 5 for value in (1, 2)):
            both += 1
            ball, box = ((label == value).nonzero().float().mean(0) for value in (1, 2))
            assert ball[1] - box[1] > 5
            assert abs(ball[0] - box[0]) < 2
            assert image[label == 2].mean() - image[(label == 0) & (image > 0.2)].mean() > 0.05  # 300 of 2000 HU
    assert both >= 3


def test_the_choice_depends_on_the_seed_alone(store):
    config = dataclasses.replace(PROBE, labelled=store)
    one, same, other = (read_labelled(config, PATCH, CONTRACT, seed) for seed in (0, 0, 1))
    assert one.images.equal(same.images)
    assert one.examples.place.equal(same.examples.place)
    assert not one.examples.place.equal(other.examples.place)
    assert one.folds == same.folds


def test_examples_are_half_background_and_all_classes_alike():
    labels = torch.zeros(2, 6, 6, 6, dtype=torch.long)
    labels[0, :3] = 1
    labels[0, 3, :2] = 2
    labels[1, 0, 0, :3] = 2
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[0, 5] = False
    found = choose_examples(labels, inside, torch.tensor([0, 1]), 40, [rng(0, n) for n in range(2)])
    counts = [[int(((found.case == c) & (found.label == k)).sum()) for k in range(3)] for c in range(2)]
    assert counts == [[20, 10, 10], [20, 0, 3]]  # the second scan has no more of its class
    assert bool(inside[found.crop, *found.place.T].all())
    assert labels[found.crop, *found.place.T].equal(found.label)
    assert len(torch.cat([found.crop[:, None], found.place], 1).unique(dim=0)) == len(found.crop)


def test_queries_are_a_lattice_as_dense_as_may_be():
    labels = torch.zeros(2, 8, 8, 4, dtype=torch.long)
    inside = torch.ones_like(labels, dtype=torch.bool)
    one_scan = torch.tensor([0, 0])
    assert len(choose_queries(labels, inside, one_scan, 512).crop) == 512
    found = choose_queries(labels, inside, one_scan, 511)
    assert len(found.crop) == 2 * 4 * 4 * 2
    assert found.place[:, 0].unique().tolist() == [1, 3, 5, 7]
    inside[:, :4] = False
    assert found.place[:, 0].unique().tolist() == [1, 3, 5, 7]
    assert choose_queries(labels, inside, one_scan, 511).place[:, 0].unique().tolist() == [5, 7]


def test_subjects_stay_together_and_folds_differ_by_one():
    subjects = (0, 0, 1, 2, 3, 3, 4)
    folds = deal(subjects, 3, seed=0)
    assert folds[0] == folds[1]
    assert folds[4] == folds[5]
    sizes = sorted(len({s for s, f in zip(subjects, folds, strict=True) if f == n}) for n in range(3))
    assert sizes == [1, 2, 2]
    assert set(deal((0, 1), 5, seed=0)) == {0, 1}


def test_a_store_of_too_few_subjects_is_refused(store, tmp_path):
    make_store(tmp_path / "one", 1, labelled=True)
    with pytest.raises(ConfigError, match="probe.labelled must be a store with labelled scans of at least 2 subjects"):
        read_labelled(dataclasses.replace(PROBE, labelled=tmp_path / "one"), PATCH, CONTRACT, 0)
    make_store(tmp_path / "none", 2, labelled=False)
    with pytest.raises(ConfigError, match="at least 2 subjects, not 0"):
        read_labelled(dataclasses.replace(PROBE, labelled=tmp_path / "none"), PATCH, CONTRACT, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("every", -1), ("cases", 1), ("folds", 1), ("crops", 0), ("queries", 0)],
        *[("k", 0), ("examples", 9), ("shrinkage", 0), ("patches", 3)],
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"probe.{name} must be"):
        ProbeConfig(**{name: value})
