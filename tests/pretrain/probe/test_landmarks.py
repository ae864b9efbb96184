"""Landmarks: where labels say, found where features say, in mm."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests_stores import make_store, scan

from pretrain.probe.config import ProbeConfig
from pretrain.probe.landmarks import landmark_figures, lattice, read_landmarks
from voxscale.contract import InputContract

CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
PATCH = (16, 16, 16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "task"
    make_store(path, 4, labelled=True)
    return read_landmarks(ProbeConfig(labelled=path, cases=4), PATCH, CONTRACT, seed=0)


def test_points_are_the_centres_of_whole_labels(data):
    """Ball and box lie 8 voxels apart along y, with the spacing of the crops."""
    assert data.images.shape == (4, 1, *PATCH)
    both = [points for points in data.points if not points.isnan().any()]
    assert both
    for points in both:
        assert (points[0] - points[1]).tolist() == pytest.approx([0, 8, 0], abs=1.0)
    means = torch.stack([p for points in data.points for p in points if not p.isnan().any()]).mean(0)
    assert means.std() > 0.05  # not all in the middle


def test_crops_are_where_the_points_say(data):
    """The crop's voxels are those of the scan, shifted by where the label's centre lies in both."""
    matched = 0
    for seed in range(4):
        volume, label = scan(seed)
        values = ((volume.values() + 1000) / 2000).clip(0, 1)
        centre = np.array(ndimage.center_of_mass(label.voxels == 1))
        for image, points in zip(data.images[:, 0].numpy(), data.points.numpy(), strict=True):
            if np.isnan(points[0]).any():
                continue
            at = (
                np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij")) + (centre - points[0])[:, None, None, None]
            )
            here = ((at >= 0) & (at <= np.array(values.shape)[:, None, None, None] - 1)).all(0)
            read = ndimage.map_coordinates(values, at, order=1)
            matched += np.abs(read - image)[here].mean() < 0.01
    assert matched == sum(not points[0].isnan().any() for points in data.points)


def test_perfect_features_err_by_the_lattice_and_none_by_chance(data):
    """Features that are waves around a landmark."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    origin = data.points[:, 0]
    far = torch.stack([grid - one.view(3, 1, 1, 1) for one in origin.nan_to_num().float()])
    maps = torch.cat([wave(k * far) for k in (0.2, 0.4, 0.8) for wave in (torch.sin, torch.cos)], dim=1)
    own = dataclasses.replace(data, points=data.points[:, :1])
    found = landmark_figures({"true": (maps, [18]), "none": (torch.zeros_like(maps), [18])}, own, 0)
    true, none = found["true/landmark_mm"], found["none/landmark_mm"]
    assert true.value < none.value
    assert true.value <= true.controls["lattice"] + 1.0
    assert true.controls["shuffled_features"] > 3 * true.value
    assert len(true.members) >= 2
    assert none.value > true.controls["lattice"]


def test_levels_are_read_at_equal_distances():
    fine, coarse = torch.rand(2, 3, 32, 32, 8), torch.rand(2, 5, 4, 4, 4)
    found = lattice([fine, coarse], (32, 32, 8))
    assert found.shape == (2, 8, 16, 16, 8)
    assert found[:, :3, 3, 5].allclose(fine[:, :, 6:8, 10:12].mean(dim=(2, 3)), atol=1e-5)


def test_labels_of_one_subject_are_no_landmarks(tmp_path):
    make_store(tmp_path / "one", 1, labelled=True)
    assert read_landmarks(ProbeConfig(labelled=tmp_path / "one", cases=4), PATCH, CONTRACT, seed=0) is None
