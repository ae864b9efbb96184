import pytest
import torch
from torch.nn import functional as F

from voxscale.errors import DataError
from voxscale.matching.local_affinity import local_affinity
from voxscale.seed import torch_generator


def naive(one, other, here, there, gamma):
    """One way for one pair of maps, vector by vector."""
    terms = []
    for far in (lambda i: (there - here[i]).norm(dim=1), lambda i: (other - one[i]).norm(dim=1)):
        pairs = sorted((far(i).min().item(), i, far(i).argmin().item()) for i in range(len(one)))
        cosines = [F.cosine_similarity(one[i], other[j], dim=0).item() for _, i, j in pairs[: gamma or len(pairs)]]
        terms.append(sum(cosines) / len(cosines))
    return sum(terms) / 2


@pytest.mark.parametrize(("grid", "grid2"), [((3, 4), (2, 5)), ((2, 3, 2), (3, 2, 2))])
@pytest.mark.parametrize("gamma", [None, 4])
@pytest.mark.parametrize("both", [True, False])
def test_equals_a_naive_loop(grid: tuple[int, ...], grid2: tuple[int, ...], gamma: int | None, both: bool) -> None:
    generator = torch_generator(0, *grid)
    dims = len(grid)
    source, target = (torch.randn(1, 2, 5, *g, generator=generator) for g in (grid, grid2))
    here, there = (10 * torch.rand(1, 2, dims, *g, generator=generator) for g in (grid, grid2))
    found = local_affinity(source, target, here, there, gamma, both)
    for i in range(2):
        for a in range(2):
            parts = [part.flatten(1).T for part in (source[0, i], target[0, a], here[0, i], there[0, a])]
            want = naive(*parts, gamma)
            if both:
                want = (want + naive(parts[1], parts[0], parts[3], parts[2], gamma)) / 2
            assert found[0, i, a].item() == pytest.approx(want, abs=1e-5)


def test_bad_input_is_named() -> None:
    maps, places = torch.zeros(1, 2, 5, 3, 3), torch.zeros(1, 2, 2, 3, 3)
    with pytest.raises(DataError, match="^target_mm must"):
        local_affinity(maps, maps, places, places[..., :2])
    with pytest.raises(DataError, match="^gamma must be 1 to 9"):
        local_affinity(maps, maps, places, places, 10)
