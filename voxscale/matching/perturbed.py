"""Learning to match: the perturbed best match against the true one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.errors import DataError
from voxscale.matching.problem import Problem
from voxscale.matching.score import score

Solver = Callable[[Problem], Int64[Tensor, "b N"]]
Generators = torch.Generator | Sequence[torch.Generator]
"""One for all problems, or one for each."""
SURE = 10.0
"""Value of lambda from which the second solve returns the truth, so that it is left out."""


@dataclass(frozen=True, slots=True)
class Perturbed:
    """What the loss solved.

    Attributes:
        loss: (b,) worth of the found matches less that of the true ones, mean over the draws.
        match: (M, b, N) found matches.
    """

    loss: Float[Tensor, " b"]
    match: Int64[Tensor, "M b N"]


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draws of Gumbel(0, 1) on the generator's device."""
    return -torch.empty(shape, device=generator.device).exponential_(generator=generator).log()


def perturbed_loss(
    problem: Problem,
    truth: Int64[Tensor, "b N"],
    noise: Problem,
    solver: Solver,
    *,
    margin: float = 0.0,
    lambda_: float = 80.0,
) -> Perturbed:
    """`<c, P> - <c, I>` with P the best match of noisy worths c, and I the true one.

    Its gradient is lambda times that of implicit maximum likelihood (LVM-Med,
    Algorithm 1; Niepert et al. 2021) with the Hamming loss: with lambda from
    `SURE` on, the second solve there returns the truth. It is also the gradient of
    the perturbed Fenchel-Young loss (Berthet et al. 2020, section 4) on these draws.

    Args:
        problem: b problems.
        truth: True match of each.
        noise: (M b) problems of noise that is added to copies of the problems, see `draw_noise`.
        solver: Finds the best match.
        margin: Taken from the worth of true pairs of nodes while solving, in place of noise.
        lambda_: Below `SURE` the second match is solved for.

    Raises:
        DataError: If truth or noise have the wrong shape, or lambda is not above 0.
    """
    if truth.shape != problem.vertex.shape[:2] or lambda_ <= 0 or len(noise.vertex) % len(truth):
        raise DataError(
            f"truth must be {tuple(problem.vertex.shape[:2])} with lambda above 0, not {tuple(truth.shape)}, {lambda_}",
            "bad_graph",
        )
    samples = len(noise.vertex) // len(truth)
    copies, wanted = problem.repeat(samples), truth.repeat(samples, 1)
    with torch.no_grad():
        true = torch.zeros_like(copies.vertex).scatter(2, wanted.unsqueeze(2), 1.0)
        vertex = copies.vertex + noise.vertex - margin * true
        edge = copies.edge + noise.edge
        found = solver(copies.with_values(vertex, edge))
        other = wanted
        if lambda_ < SURE:
            # The Hamming loss falls by 1 where a true pair is matched and rises by 1 where a false one is.
            other = solver(copies.with_values(vertex - lambda_ * (1 - 2 * true), edge))
    loss = (score(copies, found) - score(copies, other)).view(samples, -1).mean(dim=0)
    return Perturbed(loss=loss, match=found.view(samples, *truth.shape))


@torch.no_grad()
def gumbel_copies(shape: torch.Size, samples: int, generator: Generators) -> Tensor:
    """So many draws for each of the problems (b, ...), copies of all one after another.

    With a generator for each, what is drawn for a problem does not depend on those beside it.
    """
    if isinstance(generator, torch.Generator):
        return gumbel(torch.Size((samples * shape[0], *shape[1:])), generator)
    each = [gumbel(torch.Size((samples, *shape[1:])), one) for one in generator]
    return torch.stack(each, dim=1).flatten(0, 1)


def draw_noise(problem: Problem, samples: int, scale: float, generator: Generators) -> Problem:
    """Gumbel noise for every worth of every copy (LVM-Med, Algorithm 1).

    Args:
        problem: b problems; values are not looked at.
        samples: Draws per problem.
        scale: Factor of Gumbel(0, 1); 0 gives zeros.
        generator: On the device of the problems; see `gumbel_copies`.
    """
    vertex, edge = (gumbel_copies(part.shape, samples, generator) for part in (problem.vertex, problem.edge))
    return problem.repeat(samples).with_values(scale * vertex, scale * edge)
