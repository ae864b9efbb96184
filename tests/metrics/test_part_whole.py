"""Properties of embeddings that are made to have them, or to lack them, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from voxscale.errors import DataError
from voxscale.metrics.part_whole import (
    at_points,
    centroids,
    compose_gap,
    decompose_top1,
    interpolation_gap,
    matching_error,
    mean_of_parts,
)
from voxscale.seed import torch_generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "embeddings"))


def test_compose_gap_is_the_difference_of_centred_cosines_of_scipy():
    whole, composed = normal(6, 5), normal(6, 5, seed=1)
    table = 1 - cdist(whole - whole.mean(0), composed - composed.mean(0), "cosine")
    found = compose_gap(whole, composed)
    assert found.own == pytest.approx(np.trace(table) / 6, abs=1e-6)
    assert found.other == pytest.approx((table.sum() - np.trace(table)) / 30, abs=1e-6)
    assert found.gap == found.own - found.other


def test_wholes_of_one_scan_are_no_control_for_each_other():
    whole = normal(4, 5)
    pairs = compose_gap(whole, whole, torch.tensor([0, 0, 1, 1]))
    unit = torch.nn.functional.normalize(whole - whole.mean(0), dim=1)
    alike = unit @ unit.T
    assert pairs.other == pytest.approx(alike[:2, 2:].mean().item(), abs=1e-6)


@given(st.floats(0, 1000), st.integers(0, 50))
def test_a_direction_that_all_share_adds_nothing(shift: float, seed: int):
    """The plain cosine of this case rises to 1 with the shift; an untrained network is such a case."""
    whole, composed = normal(8, 4, seed=seed).double(), normal(8, 4, seed=seed + 1).double()
    plain, shifted = compose_gap(whole, composed), compose_gap(whole + shift, composed + shift)
    assert shifted.gap == pytest.approx(plain.gap, abs=1e-6)


def test_means_of_own_parts_compose_and_shuffled_ones_do_not():
    parts = normal(64, 8, 32)
    whole = parts.mean(dim=1)
    assert compose_gap(whole, mean_of_parts(parts)).gap > 0.99
    assert abs(compose_gap(whole, mean_of_parts(parts).roll(1, 0)).gap) < 0.1


def test_parts_of_air_do_not_enter_the_mean_unless_all_are_air():
    parts = torch.tensor([[[1.0], [3.0], [100.0]], [[1.0], [2.0], [6.0]]])
    counted = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_of_parts(parts, counted).tolist() == [[2.0], [3.0]]


def test_decompose_finds_true_parts_not_swapped_slots_nor_other_scans():
    true = normal(10, 4, 16)
    perfect = decompose_top1(true, true)
    assert (perfect.slots, perfect.scans, perfect.count) == (1.0, 1.0, 40)
    assert (perfect.slots_chance, perfect.scans_chance) == pytest.approx((1 / 4, 1 / 10))
    swapped = decompose_top1(true[:, [1, 0, 2, 3]], true)
    assert swapped.slots == 0.5
    rolled = decompose_top1(true.roll(1, 0), true)
    assert rolled.scans == 0.0
    guessing = decompose_top1(normal(200, 4, 16, seed=1), normal(200, 4, 16, seed=2))
    assert guessing.slots == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 800))


def test_the_mean_part_of_a_slot_tells_slots_apart_but_not_scans():
    """What a head learns that ignores the image: only the second number shows it."""
    slot = 3 * normal(1, 4, 16)
    true = slot + normal(50, 4, 16, seed=1)
    found = decompose_top1(slot.expand_as(true), true)
    assert found.slots > 0.95
    assert found.scans < 0.1


def test_air_is_not_looked_for_and_does_not_compete():
    true = normal(3, 4, 8)
    predicted = true.clone()
    predicted[0, 0] = true[0, 3]  # would be taken for slot 3
    counted = torch.ones(3, 4, dtype=torch.bool)
    assert decompose_top1(predicted, true, counted=counted).slots == pytest.approx(11 / 12)
    counted[0, 3] = False
    found = decompose_top1(predicted, true, counted=counted)
    assert found.count == 11
    assert found.slots_chance == pytest.approx((3 * 1 / 3 + 8 / 4) / 11)
    same = decompose_top1(true, true, torch.tensor([0, 0, 1]))
    assert same.scans_chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_a_linear_map_interpolates_and_extrapolates():
    places = normal(40, 3), normal(40, 3, seed=1)
    weights, bias = normal(3, 12, seed=2), 5.0

    def embed(place: torch.Tensor) -> torch.Tensor:
        return place @ weights + bias

    for share in (0.25, 0.5, 1.5):
        reached = places[0] + share * (places[1] - places[0])
        turned = normal(40, 3, seed=3)
        far = (reached - places[0]).norm(dim=1, keepdim=True)
        control = places[0] + far * turned / turned.norm(dim=1, keepdim=True)
        found = interpolation_gap(embed(places[0]), embed(places[1]), embed(reached), embed(control), share)
        assert found.own == pytest.approx(1.0)
        assert found.gap > 0.1
    noise = [normal(400, 64, seed=s) for s in range(4)]
    assert abs(interpolation_gap(*noise, 0.5).gap) < 0.03


def test_landmarks_are_found_where_features_are_alike():
    features = normal(16, 4, 5, 6)
    z, y, x = torch.meshgrid(*[torch.arange(n) * 1.0 for n in (4, 5, 6)], indexing="ij")
    places = torch.stack([3.0 * z, 2.0 * y, x])
    points = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, 5.0]])
    queries = at_points(features, points)
    torch.testing.assert_close(queries[0], features[:, 1, 2, 3])
    truth = points * torch.tensor([3.0, 2.0, 1.0])
    exact = matching_error(queries, features, places, truth)
    assert exact.mm.tolist() == [0.0, 0.0]
    assert exact.floor.tolist() == [0.0, 0.0]
    moved = matching_error(queries, features, places, truth + torch.tensor([3.0, 0.0, 4.0]))
    assert moved.mm.tolist() == [5.0, 5.0]
    far = np.linalg.norm(places.flatten(1).T.numpy() - truth[0].numpy(), axis=1)
    assert exact.chance[0].item() == pytest.approx(far.mean())
    unlike = matching_error(queries.flip(0), features, places, truth)
    assert unlike.mm.min() == pytest.approx(np.linalg.norm((truth[0] - truth[1]).numpy()))


def test_points_between_cells_are_read_as_scipy_does():
    features, points = normal(3, 4, 5, 6), torch.tensor([[0.25, 3.5, 1.75], [2.9, 0.1, 4.5]])
    want = [ndimage.map_coordinates(one.numpy(), points.T.numpy(), order=1) for one in features]
    np.testing.assert_allclose(at_points(features, points).T, want, rtol=1e-5, atol=1e-6)


def test_centroids_are_those_of_scipy():
    label = torch.randint(0, 3, (4, 5, 6), generator=torch_generator(0))
    want = ndimage.center_of_mass(np.ones(label.shape), label.numpy(), [1, 2])
    np.testing.assert_allclose(centroids(label, [1, 2]), want)
    assert centroids(label, [7]).isnan().all()


def test_bad_input_is_named():
    whole, parts = normal(4, 5), normal(4, 2, 5)
    with pytest.raises(DataError, match=r"^composed must have shape \(4, 5\), not \(3, 5\)"):
        compose_gap(whole, whole[:3])
    with pytest.raises(DataError, match="^embeddings must be of at least 3, not 2"):
        compose_gap(whole[:2], whole[:2])
    with pytest.raises(DataError, match="^scans must name the scan of each of 4"):
        compose_gap(whole, whole, torch.zeros(3, dtype=torch.long))
    with pytest.raises(DataError, match="^predicted must"):
        decompose_top1(parts[:, :1], parts)
    with pytest.raises(DataError, match="^counted must mark at least one part"):
        decompose_top1(parts, parts, counted=torch.zeros(4, 2, dtype=torch.bool))
    with pytest.raises(DataError, match="^control must"):
        interpolation_gap(whole, whole, whole, whole[:2], 0.5)
    with pytest.raises(DataError, match="^queries, features, places and truth must"):
        matching_error(whole, normal(5, 2, 2, 2), normal(3, 2, 2, 3), normal(4, 3))
