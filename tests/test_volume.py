import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from voxscale.errors import DataError, GeometryError
from voxscale.volume import LabelMap, Volume, lps_to_sar, ras_to_sar, to_canonical

VOXELS = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def affine(rotation=None, spacing=(3.0, 2.0, 1.0), origin=(7.0, 8.0, 9.0)):
    out = np.eye(4)
    out[:3, :3] = (np.eye(3) if rotation is None else rotation) * spacing
    out[:3, 3] = origin
    return out


def test_geometry_is_read_off_the_affine():
    turned = Rotation.from_euler("zyx", [20, -10, 5], degrees=True).as_matrix()
    volume = Volume(VOXELS, affine(turned), "CT", slope=2.0, intercept=-1.0)
    assert volume.spacing == pytest.approx((3, 2, 1))
    assert volume.origin == pytest.approx((7, 8, 9))
    np.testing.assert_allclose(volume.direction, turned, atol=1e-12)
    np.testing.assert_array_equal(volume.values(), VOXELS * 2.0 - 1.0)
    assert volume.unit == "HU"
    assert Volume(VOXELS, affine(), "MR").unit == "arbitrary"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Volume(VOXELS[0], affine(), "CT"), "not_3d"),
        (lambda: Volume(VOXELS[:0], affine(), "CT"), "not_3d"),
        (lambda: Volume(VOXELS.astype(complex), affine(), "CT"), "bad_dtype"),
        (lambda: Volume(VOXELS, affine(), "XX"), "bad_modality"),
        (lambda: Volume(VOXELS, affine(), "CT", slope=0.0), "bad_scaling"),
        (lambda: Volume(VOXELS, affine(), "CT", intercept=float("nan")), "bad_scaling"),
        (lambda: Volume(VOXELS, affine() * np.nan, "CT"), "bad_affine"),
        (lambda: Volume(VOXELS, affine(spacing=(0, 1, 1)), "CT"), "bad_affine"),
        (lambda: Volume(VOXELS, affine()[:3], "CT"), "bad_affine"),
        (lambda: LabelMap(VOXELS, affine()), "bad_label"),
    ],
)
def test_bad_parts_are_refused_with_a_reason(make, reason):
    with pytest.raises(DataError) as found:
        make()
    assert found.value.reason == reason


def test_sheared_affine_is_refused_and_says_by_how_much():
    sheared = affine()
    sheared[1, 0] = sheared[0, 0] * np.tan(np.radians(18.5))  # gantry tilt
    with pytest.raises(GeometryError, match=r"not sheared by 18\.5 degrees") as found:
        Volume(VOXELS, sheared, "CT")
    assert found.value.reason == "sheared"


@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    angles=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
)
def test_canonical_order_keeps_every_voxel_at_its_place(order, flips, angles, spacing):
    turned = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
    base = affine(turned, spacing)
    shuffled = np.transpose(VOXELS, order)
    moved = base[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            shuffled = np.flip(shuffled, axis)
            moved[:3, 3] += moved[:3, axis] * (shuffled.shape[axis] - 1)
            moved[:3, axis] *= -1
    out, back = to_canonical(shuffled, moved)
    for index in np.ndindex(out.shape):
        world = back @ [*index, 1]
        before = np.linalg.inv(base) @ world
        np.testing.assert_allclose(before[:3], np.round(before[:3]), atol=1e-6)
        assert out[index] == VOXELS[tuple(np.round(before[:3]).astype(int))]
    assert (np.diag(back)[:3] > 0).all()


def test_world_axes_of_nifti_and_dicom():
    ras = np.array([[1.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
    sar = ras_to_sar(ras)
    # (i, j, k) = (1, 2, 3) lies at R 11, A 24, S 39: our index is (3, 2, 1) and our point (39, 24, 11).
    np.testing.assert_allclose(sar @ [3, 2, 1, 1], [39, 24, 11, 1])
    np.testing.assert_allclose(lps_to_sar(np.diag([-1.0, -1, 1, 1]) @ ras), sar)
