import numpy as np
import pytest
import torch
from torch.nn import functional as F

from voxscale.errors import DataError
from voxscale.matching.edge_affinity import edge_affinity, offset_affinity
from voxscale.matching.gcn import GCN
from voxscale.matching.graph_conv import GraphConv
from voxscale.matching.neighbours import nearest
from voxscale.matching.vertex_affinity import vertex_affinity
from voxscale.seed import torch_generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "affinities"))


def test_nearest_equals_numpy_and_leaves_out_itself_and_what_is_taken() -> None:
    points = normal(2, 9, 3)
    apart = np.linalg.norm(points.numpy()[:, :, None] - points.numpy()[:, None], axis=3)
    order = torch.tensor(apart.argsort(axis=2))
    assert torch.equal(nearest(points, 4), order[:, :, 1:5])
    assert torch.equal(nearest(points, 2, taken=nearest(points, 3)), order[:, :, 4:6])


def test_nearest_prefers_its_group() -> None:
    points = torch.tensor([[[0.0], [1.0], [50.0], [51.0]]])
    found = nearest(points, 1, group=torch.tensor([[0, 1, 0, 1]]))
    assert found.flatten().tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("k", [0, 9])
def test_too_many_edges_are_refused(k: int) -> None:
    with pytest.raises(DataError, match="^k must be 1 to the 8"):
        nearest(normal(1, 9, 2), k)


def test_gcn_equals_the_dense_formula() -> None:
    values, layer = normal(2, 7, 5), GCN(5, 4)
    layer.initialise(torch_generator(0))
    edges = nearest(values, 3)
    for row in range(2):
        adjacency = F.one_hot(edges[row], 7).sum(1).float()
        root = torch.diag(adjacency.sum(1) ** -0.5)
        dense = root @ (adjacency + torch.eye(7)) @ root @ values[row] @ layer.linear.weight.T
        torch.testing.assert_close(layer(values, edges)[row], dense)


def test_graph_conv_equals_loops() -> None:
    values, layer = normal(1, 6, 5), GraphConv(5, 4)
    layer.initialise(torch_generator(0))
    edges, found = nearest(values, 2), None
    found = layer(values, edges)
    for i in range(6):
        mean = sum(values[0, j] for j in edges[0, i].tolist()) / 2
        torch.testing.assert_close(found[0, i], layer.root.weight @ values[0, i] + layer.linear.weight @ mean)


def test_edge_affinity_equals_loops() -> None:
    source, target = normal(1, 5, 4), normal(1, 6, 4, seed=1)
    first, second = nearest(source, 2), nearest(target, 3)
    found = edge_affinity(source, target, first, second)
    for i, p, a, q in np.ndindex(5, 2, 6, 3):
        one, other = source[0, i] - source[0, first[0, i, p]], target[0, a] - target[0, second[0, a, q]]
        assert found[0, i, p, a, q].item() == pytest.approx(F.cosine_similarity(one, other, dim=0).item(), abs=1e-5)


def test_offsets_agree_by_mm_and_only_within_a_scan() -> None:
    places = torch.tensor([[[0.0, 0, 0], [3.0, 4.0, 0], [0.0, 0, 9.0]]])
    edges = torch.tensor([[[1], [0], [0]]])
    same = offset_affinity(places, places, edges, edges, 5.0)
    assert same[0, 0, 0, 0, 0] == 1
    assert same[0, 0, 0, 1, 0].item() == pytest.approx(np.exp(-100 / 50))  # (3, 4, 0) and (-3, -4, 0): 10 mm apart
    scans = torch.tensor([[0, 0, 1]])
    split = offset_affinity(places, places, edges, edges, 5.0, scans, scans)
    assert torch.equal(split[0, :2, :, :2], same[0, :2, :, :2])
    assert not split[0, 2].any()
    assert not split[0, :, :, 2].any()


def test_vertex_affinity_mixes_both_parts() -> None:
    source, target, local = normal(1, 3, 4), normal(1, 3, 4, seed=1), normal(1, 3, 3, seed=2)
    found = vertex_affinity(source, target, local, 0.8)
    for i, a in np.ndindex(3, 3):
        want = 0.8 * F.cosine_similarity(source[0, i], target[0, a], dim=0) + 0.2 * local[0, i, a]
        torch.testing.assert_close(found[0, i, a], want)
    with pytest.raises(DataError, match="^local must be"):
        vertex_affinity(source, target, local[:, :2], 0.8)
