from itertools import pairwise

import pytest
import torch
from graphs import random_problem, relabelled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from voxscale.errors import ConfigError, DataError
from voxscale.matching import compiled
from voxscale.matching.dustbin import UNMATCHED, complete, partial, with_dustbins
from voxscale.matching.exact import solve_exactly
from voxscale.matching.problem import Problem
from voxscale.matching.rounding import round_greedily
from voxscale.matching.score import score
from voxscale.matching.softassign import softassign
from voxscale.matching.solver import SolverConfig, solve
from voxscale.matching.two_opt import edge_order, gains, one_hot_ends, two_opt
from voxscale.seed import torch_generator

HARD = SolverConfig(kicks=16)


@pytest.fixture(params=["compiled", "torch"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(compiled, "load", lambda: None)
    elif compiled.load() is None:
        pytest.skip("needs g++")


def dense_worth(problem: Problem, row: int, match: Tensor) -> float:
    """The worth by loops over all pairs, from the definition."""
    total = 0.0
    for i, a in enumerate(match.tolist()):
        total += float(problem.vertex[row, i, a])
        if i >= problem.source.shape[1] or a >= problem.target.shape[1]:
            continue
        for p, j in enumerate(problem.source[row, i].tolist()):
            for q, b in enumerate(problem.target[row, a].tolist()):
                if int(match[j]) == b:
                    total += float(problem.edge[row, i, p, a, q])
    return total


def test_score_equals_loops_over_the_definition() -> None:
    problem = random_problem(3, 6, 3, seed=0)
    match = torch.stack([torch.randperm(6, generator=torch_generator(s)) for s in range(3)])
    for row in range(3):
        assert float(score(problem, match)[row]) == pytest.approx(dense_worth(problem, row, match[row]), abs=1e-4)


@pytest.mark.parametrize("nodes", [3, 5, 7])
@pytest.mark.usefixtures("either")
def test_finds_what_trying_all_finds(nodes: int) -> None:
    problem = random_problem(20, nodes, 2, seed=1)
    best = score(problem, solve_exactly(problem))
    config = HARD if nodes >= 4 else SolverConfig()
    found = score(problem, solve(problem, config, torch_generator(0)))
    assert (found <= best + 1e-4).all()
    assert (found >= best - 1e-4).float().mean() >= 0.9


def test_compiled_and_torch_give_the_same_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.load() is None:
        pytest.skip("needs g++")
    for nodes, k in ((4, 2), (16, 5), (33, 7)):
        problem = random_problem(6, nodes, k, seed=nodes)
        binned = with_dustbins(problem, *(torch.full((6, nodes), 0.3 + s) for s in (0, 1)))
        for case in (problem, binned):
            fast = solve(case, SolverConfig())
            with monkeypatch.context() as patch:
                patch.setattr(compiled, "load", lambda: None)
                slow = solve(case, SolverConfig())
            torch.testing.assert_close(score(case, fast), score(case, slow), rtol=1e-3, atol=1e-3)
            if case is problem:
                assert torch.equal(fast, slow)


@pytest.mark.usefixtures("either")
def test_is_never_worse_than_the_best_match_of_nodes_alone() -> None:
    problem = random_problem(10, 16, 5, seed=2)
    floor = torch.stack([torch.tensor(linear_sum_assignment(v.numpy(), maximize=True)[1]) for v in problem.vertex])
    found = solve(problem, SolverConfig(), candidate=floor)
    assert (score(problem, found) >= score(problem, floor) - 1e-4).all()
    assert (score(problem, solve(problem, SolverConfig())) > score(problem, floor)).all()


@pytest.mark.usefixtures("either")
def test_edges_worth_nothing_leave_linear_matching() -> None:
    problem = random_problem(8, 12, 3, seed=3)
    linear = problem.with_values(problem.vertex, 0 * problem.edge)
    best = torch.stack([torch.tensor(linear_sum_assignment(v.numpy(), maximize=True)[1]) for v in problem.vertex])
    found = solve(linear, SolverConfig(kicks=16, exchanges=20), torch_generator(0))
    torch.testing.assert_close(score(linear, found), score(linear, best))


def test_kicks_of_a_problem_are_those_of_its_own_generator_whatever_stands_beside_it() -> None:
    """Of a solver so weak that kicks decide; of two copies of all problems, as noise makes them."""
    whole, weak = random_problem(4, 16, 3, seed=7), SolverConfig(steps=1, rounds=1, exchanges=1, kicks=3)

    def found(rows: slice, one_for_all: bool = False) -> Tensor:
        parts = (whole.vertex, whole.edge, whole.source, whole.target)
        part = Problem(**dict(zip(("vertex", "edge", "source", "target"), (p[rows] for p in parts), strict=True)))
        draws = [torch_generator(row, "kicks") for row in range(4)[rows]]
        return solve(part.repeat(2), weak, draws[0] if one_for_all else draws).view(2, -1, 16)

    everything = found(slice(0, 4))
    assert torch.equal(everything[:, :2], found(slice(0, 2)))
    assert torch.equal(everything[:, 2:], found(slice(2, 4)))
    assert not torch.equal(everything[0], everything[1])  # copies are kicked apart
    assert not torch.equal(found(slice(0, 4), one_for_all=True)[:, 2:], found(slice(2, 4), one_for_all=True))


@given(seed=st.integers(0, 10**6), nodes=st.integers(4, 12))
def test_soft_match_and_gains_follow_the_names_of_nodes(seed: int, nodes: int) -> None:
    problem = random_problem(2, nodes, 3, seed=seed)
    rows, columns = (torch.randperm(nodes, generator=torch_generator(seed, side)) for side in "st")
    other = relabelled(problem, rows, columns)
    # Few steps: a hard soft match can swing between two matches and then follows the last digits.
    soft, renamed = (softassign(p, 8, 6, (0.3, 1.0)) for p in (problem, other))
    torch.testing.assert_close(renamed, soft[:, rows][:, :, columns], atol=1e-3, rtol=1e-3)
    match = round_greedily(soft)
    named = columns.argsort()[match[:, rows]]
    torch.testing.assert_close(score(other, named), score(problem, match), atol=1e-4, rtol=1e-4)
    found, wanted = (gains(p, m, edge_order(p), one_hot_ends(p)[0]) for p, m in ((other, named), (problem, match)))
    torch.testing.assert_close(found, wanted[:, rows][:, :, rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["compiled", "torch"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), nodes=st.integers(5, 20), bins=st.booleans())
def test_matches_follow_the_names_of_nodes(way: str, seed: int, nodes: int, bins: bool) -> None:
    if way == "compiled" and compiled.load() is None:
        pytest.skip("needs g++")
    problem = random_problem(8, nodes, 4, seed=seed)
    rows, columns = (torch.randperm(nodes, generator=torch_generator(seed, side)) for side in "st")
    cases = [problem, relabelled(problem, rows, columns)]
    if bins:
        price = torch.full((8, nodes), 2.0)
        cases = [with_dustbins(case, price, price) for case in cases]
    with pytest.MonkeyPatch.context() as patch:
        if way == "torch":
            patch.setattr(compiled, "load", lambda: None)
        was, found = (solve(case, SolverConfig()) for case in cases)
    if bins:
        was, found = partial(was), partial(found)
    # New node i is the old one rows[i]; its target's old name is columns[target].
    old = torch.where(found == UNMATCHED, UNMATCHED, columns[found.clamp(min=0)])
    assert torch.equal(old, was[:, rows])


def test_gains_are_differences_of_worths() -> None:
    problem = random_problem(2, 6, 3, seed=4)
    problem = with_dustbins(problem, torch.full((2, 6), 0.1), torch.full((2, 6), 0.2))
    match = torch.stack([torch.randperm(12, generator=torch_generator(s)) for s in range(2)])
    found = gains(problem, match, edge_order(problem), one_hot_ends(problem)[0])
    for i in range(12):
        for j in range(12):
            other = match.clone()
            other[:, i], other[:, j] = match[:, j], match[:, i]
            torch.testing.assert_close(found[:, i, j], score(problem, other) - score(problem, match), atol=1e-4, rtol=0)


def test_exchanges_never_lose() -> None:
    problem = random_problem(4, 10, 3, seed=5)
    match = torch.arange(10).expand(4, 10)
    worth = [score(problem, two_opt(problem, match, steps)) for steps in range(12)]
    assert all((b >= a - 1e-4).all() for a, b in pairwise(worth))
    assert (worth[-1] > worth[0]).all()


@pytest.mark.usefixtures("either")
def test_a_pair_worth_less_than_the_dustbins_stays_unmatched() -> None:
    vertex = torch.tensor([[[5.0, 0.0], [0.0, -3.0]]])
    edges = torch.tensor([[[1], [0]]])
    plain = Problem(vertex=vertex, edge=torch.zeros(1, 2, 1, 2, 1), source=edges, target=edges)
    for price, want in ((-1.0, [0, UNMATCHED]), (-2.0, [0, 1]), (3.0, [UNMATCHED, UNMATCHED])):
        bins = torch.full((1, 2), price)
        found = partial(solve(with_dustbins(plain, bins, bins), SolverConfig(exchanges=20)))
        assert found.tolist() == [want], price


def test_partial_matches_are_completed_and_taken_back() -> None:
    match = torch.tensor([[2, UNMATCHED, 0], [UNMATCHED, UNMATCHED, UNMATCHED], [1, 0, 2]])
    whole = complete(match)
    assert torch.equal(whole.sort(dim=1).values, torch.arange(6).expand(3, 6))
    assert torch.equal(partial(whole), match)


def test_bad_input_is_named() -> None:
    problem = random_problem(1, 8, 3, seed=6)
    with pytest.raises(DataError, match=r"^problem\.vertex must have up to 7"):
        solve_exactly(problem)
    with pytest.raises(DataError, match=r"^kicks must have a generator"):
        solve(problem, SolverConfig(kicks=2))
    with pytest.raises(DataError, match=r"^problem\.vertex must be"):
        problem.with_values(problem.vertex[0], problem.edge)
    with pytest.raises(DataError, match=r"^problem\.edge must be"):
        problem.with_values(problem.vertex, problem.edge[..., :2])
    with pytest.raises(DataError, match=r"^problem\.source must be"):
        Problem(vertex=problem.vertex, edge=problem.edge, source=problem.source[0], target=problem.target)
    with pytest.raises(DataError, match=r"^dustbins must be"):
        with_dustbins(problem, torch.zeros(1, 7), torch.zeros(1, 8))
    if compiled.load() is not None:
        wrong = Problem(vertex=problem.vertex, edge=problem.edge, source=problem.source + 1, target=problem.target)
        with pytest.raises(DataError, match=r"^problem\.source must be int64"):
            solve(wrong, SolverConfig())


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("rounds", 0), ("beta", (1.0, 0.1)), ("exchanges", -1), ("kicks", -1)]
)
def test_bad_config_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^solver\.{field} must"):
        SolverConfig(**{field: value})
