import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxscale.config import from_dict, to_dict
from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.patches import STAGES, Plan, plan_patch, spacing_strides

sizes = st.floats(0.5, 2000)


@pytest.mark.parametrize(
    ("shape", "budget", "patch", "halvings"),
    [
        ((35, 50, 35), 48**3, (32, 48, 32), (3, 3, 3)),
        ((300, 512, 512), 48**3, (48, 48, 48), (3, 3, 3)),
        ((300, 512, 512), 128**3, (128, 128, 128), (5, 5, 5)),
        ((20, 256, 256), 48**3, (20, 64, 80), (2, 4, 4)),
        ((3, 3, 3), 64, (4, 4, 4), (0, 0, 0)),
        ((9, 4, 200), 48**3, (8, 4, 192), (1, 0, 5)),
    ],
)
def test_worked_cases(shape, budget, patch, halvings):
    found, strides = plan_patch(shape, budget)
    assert found == patch
    assert tuple(sum(stage[axis] == 2 for stage in strides) for axis in range(3)) == halvings


def test_a_slice_is_never_halved_across():
    patch, strides = plan_patch((35, 50, 200), 4096, 2)
    assert patch == (1, 48, 80)
    assert all(z == 1 for z, _, _ in strides)
    assert (math.prod(y for _, y, _ in strides), math.prod(x for _, _, x in strides)) == (8, 16)
    with pytest.raises(ConfigError, match="budget_voxels must be at least 16, not 15"):
        plan_patch((10, 10, 10), 15, 2)


@given(st.tuples(sizes, sizes, sizes), st.integers(64, 200**3))
def test_invariants(shape, budget):
    patch, strides = plan_patch(shape, budget)
    assert len(strides) == STAGES
    assert math.prod(patch) <= budget
    left = list(patch)
    for stage in strides:
        for axis, stride in enumerate(stage):
            assert left[axis] % stride == 0
            assert stride == (2 if left[axis] // 2 >= 4 and left[axis] % 2 == 0 else 1)
            left[axis] //= stride
    assert math.prod(left) > 1
    assert min(left) >= 4


@given(st.tuples(sizes, sizes, sizes))
def test_patch_is_as_near_to_the_shape_as_a_stride_allows(shape):
    patch, strides = plan_patch(shape, 10**12)
    for axis, n in enumerate(shape):
        step = math.prod(stage[axis] for stage in strides)
        assert abs(patch[axis] - max(n, 4)) <= step


def test_bad_input():
    with pytest.raises(ConfigError, match="budget_voxels must be at least 64, not 63"):
        plan_patch((10, 10, 10), 63)
    with pytest.raises(ConfigError, match="three positive numbers"):
        plan_patch((10, 0, 10), 1000)


def test_plan_round_trip_and_check():
    patch, strides = plan_patch((35, 50, 35), 48**3)
    plan = Plan(contract=InputContract(), patch=patch, strides=strides)
    assert from_dict(Plan, to_dict(plan)) == plan
    with pytest.raises(ConfigError, match=r"plan.patch must be a multiple of its strides \[8, 8, 8\]"):
        Plan(contract=InputContract(), patch=(33, 48, 32), strides=strides)


@pytest.mark.parametrize(
    ("spacing", "patch", "strides"),
    [
        ((1, 1, 1), (128, 128, 128), [(2, 2, 2)] * 5),
        # z is left alone until x and y are nearly as coarse
        ((5, 1, 1), (32, 128, 128), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((1.9, 1, 1), (64, 64, 64), [(2, 2, 2)] * 4 + [(1, 1, 1)]),
        ((2, 1, 1), (64, 128, 128), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        # an axis of fewer than eight voxels is not halved and does not hold the others back
        ((1, 1, 1), (8, 64, 64), [(2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1)]),
    ],
)
def test_strides_of_a_spacing_by_hand(spacing, patch, strides):
    assert list(spacing_strides(spacing, patch, 5)) == strides


@pytest.mark.parametrize(
    ("shape", "spacing", "patch", "strides"),
    [
        # 70 x 64 x 77 mm, where 20 x 64 x 80 voxels would be 100 x 51 x 64 mm; 14 slices of 5 mm can be halved once:
        # not before x and y of 0.8 mm are at 3.2 mm
        ((20, 256, 256), (5.0, 0.8, 0.8), (14, 80, 96), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1)]),
        ((20, 256, 256), (1.0, 1.0, 1.0), (20, 64, 80), [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 1, 1)]),
        ((256, 20, 256), (0.8, 5.0, 0.8), (80, 14, 96), [(2, 1, 2), (2, 1, 2), (2, 2, 2), (2, 1, 2), (1, 1, 1)]),
    ],
)
def test_planned_strides_follow_the_spacing_and_the_patch_fits_them(shape, spacing, patch, strides):
    planned, found = plan_patch(shape, 48**3, spacing=spacing)
    assert list(found) == strides
    assert planned == patch
    Plan(contract=InputContract(spacing=spacing), patch=planned, strides=found)


def test_scans_thinner_than_a_cube_are_kept_whole_and_slices_thicker_than_it_keep_four():
    # 6 slices of 5 mm are 30 mm, less than the others' 38 and 45
    assert plan_patch((6, 256, 256), 16_200, spacing=(5.0, 0.8, 0.8))[0] == (6, 48, 56)
    assert plan_patch((40, 64, 64), 4096, spacing=(50.0, 1.0, 1.0))[0] == (4, 32, 32)
    # in a plane as in space: 24 x 24 mm instead of 32 x 16
    assert plan_patch((30, 64, 64), 288, 2, (1.0, 2.0, 1.0))[0] == (1, 12, 24)


ALLOWED = [n for n in range(4, 4001) if n % 2 ** min(5, int(math.log2(n / 4))) == 0]
spacings = st.tuples(*[st.floats(0.2, 10)] * 3)


@given(st.tuples(sizes, sizes, sizes), st.integers(64, 200**3), spacings)
def test_no_axis_was_cut_while_another_was_longer_in_mm(shape, budget, spacing):
    patch, _ = plan_patch(shape, budget, spacing=spacing)
    whole, _ = plan_patch(shape, 10**12, spacing=spacing)
    assert all(n in ALLOWED for n in patch)
    for axis in range(3):
        if patch[axis] < whole[axis]:
            before = ALLOWED[ALLOWED.index(patch[axis]) + 1] * spacing[axis]
            others = [patch[other] * spacing[other] for other in range(3) if other != axis and patch[other] > 4]
            assert all(before >= mm for mm in others)


@given(st.tuples(sizes, sizes, sizes), st.integers(64, 200**3), st.floats(0.2, 10))
def test_the_size_of_cubic_voxels_does_not_matter(shape, budget, mm):
    assert plan_patch(shape, budget, spacing=(mm, mm, mm)) == plan_patch(shape, budget)


@given(st.tuples(sizes, sizes, sizes), st.integers(64, 200**3), spacings)
def test_any_spacing_gives_a_patch_that_can_be_strided(shape, budget, spacing):
    patch, strides = plan_patch(shape, budget, spacing=spacing)
    assert math.prod(patch) <= budget
    for axis in range(3):
        left = patch[axis]
        for stage in strides:
            assert left % stage[axis] == 0
            left //= stage[axis]
        assert left >= 4


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, 1)])
def test_bad_spacing_of_a_plan_is_refused(spacing):
    with pytest.raises(ConfigError, match=r"^spacing must be three positive numbers"):
        plan_patch((10, 10, 10), 1000, spacing=spacing)


@pytest.mark.parametrize(("spacing", "patch"), [((0, 1, 1), (8, 8, 8)), ((1, 1), (8, 8, 8)), ((1, 1, 1), (8, 0, 8))])
def test_bad_spacing_or_patch_is_refused(spacing, patch):
    with pytest.raises(ConfigError, match=r"^(spacing|patch) must be three positive numbers"):
        spacing_strides(spacing, patch, 5)
