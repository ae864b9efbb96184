import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.errors import GeometryError
from voxscale.io.storage import exact_storage, make_raw, smallest_integer


def restore(stored, slope, intercept):
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [(0, 255, "uint8"), (-1, 127, "int8"), (0, 256, "int16"), (-1024, 3071, "int16"), (0, 65535, "uint16"),
     (-1, 65535, "int32"), (0, 2**32 - 1, "uint32")],
)  # fmt: skip
def test_smallest_integer(low, high, name):
    assert smallest_integer(low, high) == np.dtype(name)


def test_integers_keep_their_scaling_and_shrink():
    stored, slope, intercept = exact_storage(np.array([[0, 4095]], dtype=np.int64), 1.0, -1024.0)
    assert stored.dtype == np.int16
    assert stored.tolist() == [[0, 4095]]
    assert (slope, intercept) == (1.0, -1024.0)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_whole_numbers_in_floats_become_integers(kind):
    values = np.arange(-1000, 1500, dtype=kind).reshape(25, 10, 10)
    stored, slope, intercept = exact_storage(values)
    assert stored.dtype == np.int16
    assert (slope, intercept) == (1.0, 0.0)
    assert np.array_equal(stored, values)


@pytest.mark.parametrize("slope", [0.1, 0.3629564046859741, 6.4823527, 1e-6])
def test_scaled_bytes_saved_as_floats_become_bytes(slope):
    counts = np.random.default_rng(0).integers(0, 256, (9, 8, 7))
    values = (counts * np.float64(np.float32(slope))).astype(np.float32)
    stored, step, start = exact_storage(values)
    assert stored.dtype == np.uint8
    assert np.array_equal(restore(stored, step, start), values)


def test_noise_stays_float32_exactly():
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    stored, slope, intercept = exact_storage(values)
    assert stored.dtype == np.float32
    assert (slope, intercept) == (1.0, 0.0)
    assert np.array_equal(stored, values)


def test_nan_and_infinity_survive():
    values = np.array([1.0, np.nan, np.inf, -np.inf])
    stored, _, _ = exact_storage(values)
    assert np.array_equal(stored, values.astype(np.float32), equal_nan=True)


def test_integers_beyond_32_bits_become_float32():
    values = np.array([0, 12345678, 2**40], dtype=np.int64)
    stored, _, _ = exact_storage(values)
    assert stored.tolist() == values.astype(np.float32).tolist()
    assert stored.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=30),
    st.floats(2.0**-14, 2.0**14, width=32),
    st.floats(-(2.0**14), 2.0**14, width=32),
)
def test_values_always_come_back_exactly(counts, slope, intercept):
    values = (np.array(counts) * slope + intercept).astype(np.float32)
    assert np.array_equal(restore(*exact_storage(values)), values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_any_floats_come_back_exactly(values):
    values = np.array(values, dtype=np.float32)
    assert np.array_equal(restore(*exact_storage(values)), values, equal_nan=True)


@pytest.mark.parametrize("seed", range(12))
def test_a_scale_for_each_slice_stores_what_its_values_would(seed):
    rng = np.random.default_rng(seed)
    stored = rng.integers(-300, 300, (6, 5, 7)).astype(rng.choice(["int16", "int32", "float32"]))
    stored[0, 0, 0] = 0
    choices = [[1.0, 2.0, -1.0], [0.5, 0.25, 3.0], [0.1, 0.37, 1.7]][seed % 3]
    slopes, starts = rng.choice(choices, (6, 1, 1)), rng.choice([0.0, -1024.0, 7.5], (6, 1, 1))
    values = stored.astype(np.float64) * slopes + starts
    affine = np.array([[0, -2.0, 0, 3], [1.5, 0, 0, 4], [0, 0, -1.0, 5], [0, 0, 0, 1]])
    found, want = make_raw(stored, affine, slopes, starts), make_raw(values, affine)
    assert (found.slope, found.intercept, found.voxels.dtype) == (want.slope, want.intercept, want.voxels.dtype)
    assert found.voxels.tobytes() == want.voxels.tobytes()
    assert found.voxels.shape == want.voxels.shape
    assert np.array_equal(found.affine, want.affine)


@pytest.mark.parametrize("shape", [(1, 600, 900), (3, 1, 300, 500), (5, 300, 300), (1, 1, 400_000)])
def test_large_planes_are_stored_as_all_of_them_at_once(shape):
    rng = np.random.default_rng(0)
    for values in (rng.normal(0, 1, shape), rng.integers(-9, 9, shape) * 0.25, rng.integers(0, 40, shape) * 1.0):
        stored, step, start = exact_storage(values.astype(np.float32))
        want = values.astype(np.float32)
        kind = np.float32 if values.dtype.kind == "f" and not (values * 4 == np.rint(values * 4)).all() else np.integer
        assert np.issubdtype(stored.dtype, kind)
        assert stored.shape == shape
        assert np.array_equal(restore(stored, step, start).reshape(shape), want)


def test_make_raw_refuses_a_singular_affine():
    with pytest.raises(GeometryError, match="longer than 0") as error:
        make_raw(np.zeros((2, 2, 2), np.uint8), np.diag([1.0, 0.0, 1.0, 1.0]))
    assert error.value.reason == "bad_affine"


def test_modality_of_a_crop_without_air_is_guessed_from_fat():
    inside = np.full((10, 10, 10), 40, np.int16)
    inside[:1] = -95
    assert make_raw(inside, np.eye(4)).volume(None).modality == "CT"
    ringing = np.full((10, 10, 10), 40, np.int16)  # MR after interpolation: a few values below 0
    ringing[0, 0, :5] = -77
    assert make_raw(ringing, np.eye(4)).volume(None).modality == "MR"


def test_modality_is_guessed_from_air():
    affine = np.eye(4)
    ct = np.full((10, 10, 10), -1000, np.int16)
    ct[5:] = 40
    assert make_raw(ct, affine).volume(None).modality == "CT"
    assert make_raw(ct + 1000, affine).volume(None).modality == "MR"
    assert make_raw(ct + 1000, affine, 1.0, -1000.0).volume(None).modality == "CT"
    assert make_raw(ct + 1000, affine).volume("CT").modality == "CT"
