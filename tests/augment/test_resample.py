import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform, map_coordinates

from voxscale.augment.resample import coordinates, resample
from voxscale.augment.spatial import Spatial, extent, matrix
from voxscale.batch import Batch, Patch, collate
from voxscale.seed import rng

SCALE = (1 / 2000, 0.5)


def patch_of(voxels: np.ndarray, mapping: np.ndarray, label: np.ndarray | None = None) -> Patch:
    return Patch(voxels=voxels, label=label, matrix=mapping, scale=SCALE, seed=0, index=0, volume="0" * 16)


def shift(*offset: float) -> np.ndarray:
    return np.column_stack([np.eye(3), np.array(offset, dtype=np.float64)])


def box(seed: int, shape: tuple[int, int, int], dtype: str = "int16") -> np.ndarray:
    low = 0 if np.dtype(dtype).kind == "u" else -120
    return rng(seed, "box").integers(low, 120, size=shape).astype(dtype)


def points(mapping: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij")).reshape(3, -1)
    return (mapping[:, :3] @ index + mapping[:, 3:]).reshape(3, *patch)


def expected(voxels: np.ndarray, mapping: np.ndarray, patch: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    where = points(mapping, patch)
    edge = np.array(voxels.shape).reshape(3, 1, 1, 1)
    inside = ((where >= -0.5) & (where <= edge - 0.5)).all(0)
    values = map_coordinates(voxels.astype(np.float64), where, order=1, mode="nearest")
    return np.where(inside, np.clip(values * SCALE[0] + SCALE[1], 0, 1), 0), inside


@given(
    st.integers(0, 1000),
    st.tuples(*[st.floats(0.6, 1.6)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.tuples(*[st.floats(-40, 40)] * 3),
)
@settings(max_examples=25, deadline=None)
def test_agrees_with_scipy_for_boxes_of_unequal_size(
    seed: int, zoom: tuple[float, ...], flips: tuple[bool, ...], angles: tuple[float, ...]
) -> None:
    patch = (6, 7, 8)
    drawn = Spatial(zoom=zoom, flips=flips, angles=angles)
    voxels = [box(seed, (9, 12, 10)), box(seed + 1, (5, 14, 7))]
    maps = [matrix(drawn, patch, (1.5,) * 3, (2.5, 0.9, 1.1), [(n - 1) / 2 + 0.137 for n in v.shape]) for v in voxels]
    labels = [(v % 5).astype(np.uint8) for v in voxels]
    batch = collate([patch_of(v, m, one) for v, m, one in zip(voxels, maps, labels, strict=True)])
    images, inside, label = resample(batch, patch)
    assert images.shape == inside.shape == label.shape == (2, 1, *patch)
    assert (images.dtype, inside.dtype, label.dtype) == (torch.float32, torch.bool, torch.uint8)
    for row in range(2):
        values, within = expected(voxels[row], maps[row], patch)
        where = points(maps[row], patch)
        # Points within rounding distance of a border between two voxels may fall to either side.
        clear = (np.abs(where - np.floor(where) - 0.5) > 1e-4).all(0)
        np.testing.assert_array_equal(inside[row, 0].numpy()[clear], within[clear])
        np.testing.assert_allclose(images[row, 0].numpy()[clear], values[clear], atol=1e-5)
        nearest = map_coordinates(labels[row], where, order=0, mode="nearest") * within
        np.testing.assert_array_equal(label[row, 0].numpy()[clear], nearest[clear])


def test_composition_agrees_with_separate_steps_of_scipy() -> None:
    """Rotate in mm on an isotropic grid with scipy, then flip: the same as one matrix that does both."""
    smooth = np.sin(np.indices((24, 24, 24)).sum(0) / 7) * 900
    centre = np.array([11.5] * 3)
    angle = np.radians(30)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    turned = affine_transform(smooth, turn, offset=centre - turn @ centre, order=1)
    middle = turned[6:18, 6:18, 6:18][:, ::-1]  # crop to the central 12^3, mirror y
    drawn = Spatial(flips=(False, True, False), angles=(30, 0, 0))
    mapping = matrix(drawn, (12, 12, 12), (1, 1, 1), (1, 1, 1), tuple(centre))
    images, inside, _ = resample(collate([patch_of(smooth.astype(np.float32), mapping)]), (12, 12, 12))
    assert inside.all()
    np.testing.assert_allclose(images[0, 0].numpy(), middle * SCALE[0] + SCALE[1], atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"])
def test_identity_returns_the_stored_values(dtype: str) -> None:
    voxels = box(1, (5, 6, 7), dtype)
    images, inside, label = resample(collate([patch_of(voxels, shift(0, 0, 0))]), (5, 6, 7))
    np.testing.assert_allclose(images[0, 0].numpy(), voxels * SCALE[0] + SCALE[1], atol=1e-4)
    assert inside.all()
    assert label is None


def test_long_rows_keep_their_precision() -> None:
    voxels = box(2, (4, 4, 700))
    mapping = shift(0, 0, 0.25)
    images, _, _ = resample(collate([patch_of(voxels, mapping)]), (4, 4, 700))
    np.testing.assert_allclose(images[0, 0].numpy(), expected(voxels, mapping, (4, 4, 700))[0], atol=1e-4)


def test_values_are_clipped_after_interpolation() -> None:
    voxels = np.full((3, 3, 3), -3000, dtype=np.int16)
    voxels[1] = 3000
    for step, value in ((0.25, 0.0), (0.4, 0.2)):  # -1500 and -600; clipping first would give 0.25 and 0.4
        images, _, _ = resample(collate([patch_of(voxels, shift(step, 0, 0))]), (1, 3, 3))
        np.testing.assert_allclose(images.numpy(), value, atol=1e-5)


@pytest.mark.parametrize("small", [(4, 5, 6), (1, 5, 6), (4, 1, 1)])
def test_padding_never_leaks(small: tuple[int, int, int]) -> None:
    first = collate([patch_of(box(3, small), shift(0.3, 0.2, 0.1), np.ones(small, np.uint8))])
    far = torch.full((1, 1, 9, 300, 11), 1e9)
    far[:, :, : small[0], : small[1], : small[2]] = first.voxels
    far_label = torch.full(far.shape, 9, dtype=torch.uint8)
    far_label[:, :, : small[0], : small[1], : small[2]] = first.label
    padded = Batch(
        voxels=far,
        label=far_label,
        sizes=first.sizes,
        matrix=first.matrix,
        scale=first.scale,
        seeds=first.seeds,
        indices=first.indices,
    )
    alone, inside, label = resample(first, (9, 9, 9))
    images, padded_inside, padded_label = resample(padded, (9, 9, 9))
    torch.testing.assert_close(images, alone, atol=1e-4, rtol=0)
    assert torch.equal(padded_inside, inside)
    assert torch.equal(padded_label, label)


def test_scan_ends_half_a_voxel_beyond_the_last_centre() -> None:
    voxels = np.full((2, 2, 4), 500, dtype=np.int16)
    mapping = np.column_stack([np.diag([1, 1, 0.4]), [0, 0, -0.95]])
    label = np.full(voxels.shape, 3, dtype=np.uint8)
    images, inside, labels = resample(collate([patch_of(voxels, mapping, label)]), (2, 2, 13))
    where = -0.95 + 0.4 * np.arange(13)
    within = (where >= -0.5) & (where <= 3.5)
    np.testing.assert_array_equal(inside[0, 0, 0, 0].numpy(), within)
    # Outside is 0, not what a stored 0 would become (0.5).
    np.testing.assert_allclose(images[0, 0, 0, 0].numpy(), within * 0.75, atol=1e-6)
    np.testing.assert_array_equal(labels[0, 0, 0, 0].numpy(), within * 3)


def test_box_of_the_extent_has_the_whole_patch_inside() -> None:
    drawn = Spatial(zoom=(1.4, 0.8, 1.1), flips=(True, False, True), angles=(20, -35, 50))
    size = extent(drawn, (8, 8, 8), (1.5,) * 3, (3.0, 0.7, 0.7))
    centre = tuple((n - 1) / 2 for n in size)
    mapping = matrix(drawn, (8, 8, 8), (1.5,) * 3, (3.0, 0.7, 0.7), centre)
    _, inside, _ = resample(collate([patch_of(box(4, size), mapping)]), (8, 8, 8))
    assert inside.all()


def test_batch_gives_what_each_box_gives_alone() -> None:
    patches = [patch_of(box(5 + i, (6 + i, 8 - i, 7)), shift(i / 3, 0.4, 0)) for i in range(3)]
    together, inside, _ = resample(collate(patches), (6, 6, 6))
    for row, one in enumerate(patches):
        alone, alone_inside, _ = resample(collate([one]), (6, 6, 6))
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=0)
        assert torch.equal(inside[row], alone_inside[0])
    assert not together.requires_grad


def test_without_rotation_the_host_finds_the_same_points_along_each_axis_alone() -> None:
    drawn = [Spatial(zoom=(0.7, 1.2, 1.4), flips=(True, False, True)), Spatial()]
    maps = torch.stack(
        [torch.tensor(matrix(d, (5, 6, 7), (1.0,) * 3, (1.0,) * 3, [4.2, 3.1, 5.7])) for d in drawn]
    ).float()
    short = coordinates(maps, (5, 6, 7))
    assert [tuple(one.shape) for one in short] == [(2, 5, 1, 1), (2, 1, 6, 1), (2, 1, 1, 7)]
    turned = maps.clone()
    turned[:, 0, 1] = 1e-30  # what no product shows, so that all coordinates are worked out
    for one, whole in zip(short, coordinates(turned, (5, 6, 7)), strict=True):
        assert whole.shape == (2, 5, 6, 7)
        assert torch.equal(one.expand(2, 5, 6, 7), whole)
