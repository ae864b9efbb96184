from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from voxscale.augment.spatial import Spatial, SpatialConfig, extent, matrix, rotation, sample
from voxscale.config import load_json, save_json
from voxscale.errors import ConfigError
from voxscale.seed import rng

PATCH = (8, 10, 12)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)
transforms = st.builds(
    Spatial,
    zoom=st.tuples(*[st.floats(0.5, 2)] * 3),
    flips=st.tuples(*[st.booleans()] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
)


def to_box(mapping: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ mapping[:, :3].T + mapping[:, 3]


def test_identity_maps_every_index_to_itself() -> None:
    centre = tuple((n - 1) / 2 for n in PATCH)
    found = matrix(Spatial(), PATCH, (2, 3, 4), (2, 3, 4), centre)
    np.testing.assert_allclose(found, np.eye(4)[:3], atol=1e-12)


def test_hand_computed_zoom_flip_and_spacing() -> None:
    drawn = Spatial(zoom=(1.0, 2.0, 0.5), flips=(False, True, False))
    found = matrix(drawn, (3, 5, 7), (1.5, 1.5, 1.5), (5.0, 1.0, 0.75), (10, 20, 30.5))
    # Steps in scan voxels: 1.5 / 5, -1.5 * 2 / 1, 1.5 * 0.5 / 0.75; the patch's centre is (1, 2, 3).
    expected = [[0.3, 0, 0, 10 - 0.3], [0, -3, 0, 20 + 6], [0, 0, 1, 30.5 - 3]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_quarter_turn_exchanges_axes_of_unequal_spacing() -> None:
    found = matrix(Spatial(angles=(0, 0, 90)), (5, 5, 5), (1, 1, 1), (4, 0.5, 1), (2, 2, 2))
    # One step along z of the patch is 1 mm, after the turn along y: 2 scan voxels. Along y it is 1/4 voxel of z.
    np.testing.assert_allclose(found[:, :3] @ [1, 0, 0], [0, 2, 0], atol=1e-12)
    np.testing.assert_allclose(found[:, :3] @ [0, 1, 0], [-0.25, 0, 0], atol=1e-12)


@given(st.tuples(*[st.floats(-180, 180)] * 3))
@settings(max_examples=50, deadline=None)
def test_rotation_agrees_with_scipy(angles: tuple[float, float, float]) -> None:
    about_z, about_y, about_x = angles
    # scipy turns about its second axis from the third towards the first, hence the sign.
    expected = Rotation.from_euler("XYZ", (about_z, -about_y, about_x), degrees=True).as_matrix()
    np.testing.assert_allclose(rotation(angles), expected, atol=1e-12)


@given(transforms, spacings, spacings)
@settings(max_examples=50, deadline=None)
def test_distances_in_mm_are_those_of_the_zoomed_patch(
    drawn: Spatial, target: tuple[float, float, float], scan: tuple[float, float, float]
) -> None:
    points = rng(0, "points").uniform(0, 10, size=(2, 3))
    box = to_box(matrix(drawn, PATCH, target, scan, (0, 0, 0)), points)
    expected = np.linalg.norm((points[0] - points[1]) * target * np.array(drawn.zoom))
    assert np.linalg.norm((box[0] - box[1]) * scan) == pytest.approx(expected)


@given(transforms, spacings, spacings, st.tuples(*[st.floats(0, 100)] * 3))
@settings(max_examples=200, deadline=None)
def test_extent_covers_the_patch_and_little_more(
    drawn: Spatial,
    target: tuple[float, float, float],
    scan: tuple[float, float, float],
    centre: tuple[float, float, float],
) -> None:
    size = np.array(extent(drawn, PATCH, target, scan))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in PATCH])).reshape(3, -1).T
    box = to_box(matrix(drawn, PATCH, target, scan, centre), corners)
    np.testing.assert_allclose((box.min(0) + box.max(0)) / 2, centre, atol=1e-9)
    for start in (np.floor(np.array(centre) - (size - 1) / 2), np.round(np.array(centre) - (size - 1) / 2)):
        assert (np.floor(box.min(0) + 1e-9) >= start).all()
        assert (np.ceil(box.max(0) - 1e-9) <= start + size - 1).all()
    assert (size <= box.max(0) - box.min(0) + 4 + 1e-9).all()


def test_draws_stay_in_range_and_repeat() -> None:
    config = SpatialConfig(zoom=(0.8, 1.2), flip=(0.0, 1.0, 0.5), rotate=(10.0, 0.0, 45.0))
    drawn = [sample(rng(seed), config) for seed in range(300)]
    assert drawn == [sample(rng(seed), config) for seed in range(300)]
    zoom, flips = np.array([d.zoom for d in drawn]), np.array([d.flips for d in drawn])
    angles = np.array([d.angles for d in drawn])
    assert 0.8 <= zoom.min() < 0.82
    assert 1.18 < zoom.max() <= 1.2
    assert not flips[:, 0].any()
    assert flips[:, 1].all()
    assert 0.4 < flips[:, 2].mean() < 0.6
    assert (angles[:, 1] == 0).all()
    assert np.abs(angles).max(0)[[0, 2]] == pytest.approx((10, 45), rel=0.05)
    assert (angles[:, 0] < 0).any()


def test_one_zoom_for_all_axes() -> None:
    drawn = sample(rng(3), SpatialConfig(zoom_per_axis=False))
    assert len(set(drawn.zoom)) == 1
    assert len(set(sample(rng(3), SpatialConfig()).zoom)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"zoom": (1.5, 0.7)},
        {"zoom": (0.0, 1.0)},
        {"zoom": (0.7, float("nan"))},
        {"flip": (0.5, 0.5, 1.1)},
        {"rotate": (0.0, -1.0, 0.0)},
    ],
)
def test_bad_config_is_refused_by_name(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match=f"^spatial.{next(iter(wrong))} must be"):
        SpatialConfig(**wrong)


def test_config_survives_json(tmp_path: Path) -> None:
    config = SpatialConfig(rotate=(5.0, 0.0, 0.0))
    save_json(config, tmp_path / "spatial.json")
    assert load_json(SpatialConfig, tmp_path / "spatial.json") == config
