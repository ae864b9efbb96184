import pytest
import torch
from graphs import random_problem

from voxscale.errors import DataError
from voxscale.matching.exact import solve_exactly
from voxscale.matching.perturbed import draw_noise, gumbel, perturbed_loss
from voxscale.matching.problem import Problem
from voxscale.matching.score import score
from voxscale.seed import torch_generator


def leaves(problem: Problem) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    vertex, edge = problem.vertex.double().requires_grad_(), problem.edge.double().requires_grad_()
    return problem.with_values(vertex, edge), vertex, edge


def identity(batch: int, nodes: int) -> torch.Tensor:
    return torch.arange(nodes).expand(batch, nodes)


def indicators(problem: Problem, match: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs of nodes and of edges are matched, by loops."""
    vertex, edge = torch.zeros_like(problem.vertex), torch.zeros_like(problem.edge)
    for b, i in torch.cartesian_prod(torch.arange(len(match)), torch.arange(match.shape[1])).tolist():
        a = match[b, i]
        vertex[b, i, a] = 1
        for p, j in enumerate(problem.source[b, i].tolist()):
            edge[b, i, p, a] = (problem.target[b, a] == match[b, j]).to(edge.dtype)
    return vertex, edge


@pytest.mark.parametrize("lambda_", [80.0, 20.0, 1.0])
def test_gradient_is_lambda_times_implicit_maximum_likelihood(lambda_: float) -> None:
    problem, vertex, edge = leaves(random_problem(4, 5, 2, seed=0))
    truth, noise = identity(4, 5), draw_noise(problem, 1, 0.3, torch_generator(0))
    perturbed_loss(problem, truth, noise, solve_exactly, lambda_=lambda_).loss.sum().backward()
    # Algorithm 1 with both solves, whatever lambda is.
    slope = torch.ones_like(problem.vertex) - 2 * torch.eye(5)
    noisy = problem.with_values(vertex.detach() + noise.vertex, edge.detach() + noise.edge)
    first = indicators(problem, solve_exactly(noisy))
    second = indicators(problem, solve_exactly(noisy.with_values(noisy.vertex - lambda_ * slope, noisy.edge)))
    for found, one, other in zip((vertex.grad, edge.grad), first, second, strict=True):
        torch.testing.assert_close(found, lambda_ * (one - other) / lambda_, check_dtype=False)
    assert vertex.grad.any()


def test_gradient_is_that_of_the_perturbed_maximum() -> None:
    """Finite differences of `mean max <c + eps, P> - <c, I>` over the same draws, all matches tried."""
    problem, vertex, edge = leaves(random_problem(1, 4, 2, seed=1))
    samples, truth = 8, identity(1, 4)
    noise = draw_noise(problem, samples, 1.0, torch_generator(1))
    noise = noise.with_values(noise.vertex.double(), noise.edge.double())
    perturbed_loss(problem, truth, noise, solve_exactly).loss.sum().backward()

    def worth(v: torch.Tensor, e: torch.Tensor) -> float:
        copies = problem.with_values(v, e).repeat(samples)
        noisy = copies.with_values(copies.vertex + noise.vertex, copies.edge + noise.edge)
        return float(score(noisy, solve_exactly(noisy)).mean() - score(problem.with_values(v, e), truth).sum())

    with torch.no_grad():
        for leaf in (vertex, edge):
            for place in range(leaf.numel()):
                step = torch.zeros(leaf.numel(), dtype=torch.double)
                step[place] = 1e-6
                up, down = (
                    worth(*(x + s * step.view_as(x) if x is leaf else x for x in (vertex, edge))) for s in (1, -1)
                )
                assert leaf.grad.flatten()[place].item() == pytest.approx((up - down) / 2e-6, abs=1e-4)


def test_no_gradient_where_the_truth_is_found() -> None:
    problem = random_problem(2, 5, 2, seed=2)
    problem, vertex, edge = leaves(problem.with_values(problem.vertex + 100 * torch.eye(5), problem.edge))
    found = perturbed_loss(problem, identity(2, 5), draw_noise(problem, 3, 1.0, torch_generator(0)), solve_exactly)
    found.loss.sum().backward()
    assert not vertex.grad.any()
    assert not edge.grad.any()
    assert not found.loss.any()


def test_margin_turns_a_near_tie_over() -> None:
    problem = random_problem(1, 2, 1, seed=3)
    problem = problem.with_values(torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]), 0 * problem.edge)
    noise, truth = draw_noise(problem, 1, 0.0, torch_generator(0)), identity(1, 2)
    assert perturbed_loss(problem, truth, noise, solve_exactly).match.tolist() == [[[0, 1]]]
    assert perturbed_loss(problem, truth, noise, solve_exactly, margin=0.2).match.tolist() == [[[1, 0]]]


def test_gumbel_has_its_mean_and_variance() -> None:
    drawn = gumbel(torch.Size([200_000]), torch_generator(0))
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert drawn.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)


def test_bad_input_is_named() -> None:
    problem = random_problem(2, 4, 2, seed=4)
    noise = draw_noise(problem, 1, 1.0, torch_generator(0))
    for truth, lambda_ in ((identity(2, 3), 80.0), (identity(2, 4), 0.0)):
        with pytest.raises(DataError, match="^truth must be"):
            perturbed_loss(problem, truth, noise, solve_exactly, lambda_=lambda_)


def test_noise_of_a_problem_with_its_own_generator_does_not_depend_on_those_beside_it():
    problem = Problem(torch.zeros(3, 5, 5), torch.zeros(3, 5, 2, 5, 2), *[torch.zeros(3, 5, 2, dtype=torch.long)] * 2)
    all_three = draw_noise(problem, 2, 1.0, [torch_generator(s) for s in range(3)])
    alone = Problem(*(part[1:2] for part in (problem.vertex, problem.edge, problem.source, problem.target)))
    second = draw_noise(alone, 2, 1.0, [torch_generator(1)])
    for whole, own in ((all_three.vertex, second.vertex), (all_three.edge, second.edge)):
        assert whole[1::3].equal(own)
        assert not own[0].equal(own[1])
