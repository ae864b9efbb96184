"""The batched solver: soft match, rounding, exchanges, kicks; a fixed number of steps, all on the device."""

from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from voxscale.config import config, require
from voxscale.errors import DataError
from voxscale.matching import compiled
from voxscale.matching.perturbed import Generators
from voxscale.matching.problem import Problem
from voxscale.matching.replay import Replay
from voxscale.matching.rounding import round_greedily
from voxscale.matching.score import score
from voxscale.matching.softassign import WORTH, softassign
from voxscale.matching.two_opt import two_opt
from voxscale.stopwatch import SOLVER

REPLAY = Replay()


@config
class SolverConfig:
    """How hard the solver tries.

    Attributes:
        steps: Values of beta of the soft match.
        rounds: Normalisations at each of them.
        beta: First and last value.
        exchanges: Exchanges of two nodes after rounding, at most.
        kicks: Changed copies of the match that are improved side by side, see `solve`; 0 for none.
        kick_rounds: How often this is done.
    """

    steps: int = 40
    rounds: int = 6
    beta: tuple[float, float] = (0.3, 10.0)
    exchanges: int = 10
    kicks: int = 0
    kick_rounds: int = 2

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        for name in ("steps", "rounds", "kick_rounds"):
            require(getattr(self, name) >= 1, f"solver.{name}", "at least 1", getattr(self, name))
        for name in ("exchanges", "kicks"):
            require(getattr(self, name) >= 0, f"solver.{name}", "at least 0", getattr(self, name))
        require(0 < self.beta[0] <= self.beta[1], "solver.beta", "two rising numbers above 0", self.beta)


@torch.no_grad()
def solve(
    problem: Problem,
    config: SolverConfig,
    generator: Generators | None = None,
    candidate: Int64[Tensor, "b N"] | None = None,
) -> Int64[Tensor, "b N"]:
    """A good match of each problem, whatever the precision of training.

    It does not depend on the order in which nodes stand, but for kicks and matches that are worth the same: worths are
    rounded to multiples of `WORTH`, so that sums of them are exact.

    A kick sends the targets of four nodes, drawn for each copy, round in a
    circle; the best of all copies and the match before is kept.

    On CPUs the compiled kernel does the steps up to the kicks, where it is built. On GPUs they are recorded when the
    same shapes come for the second time, and then launched at once. The time is counted by `voxscale.stopwatch.SOLVER`.

    Args:
        problem: b problems.
        config: How hard to try.
        generator: Of the kicks, on the device of the problems; with one for each problem, of which there may be several
            copies one after another, what is drawn for it does not depend on those beside it.
        candidate: A match that is returned where what was found is not better.

    Raises:
        DataError: If there are kicks and no generator, or fewer than four nodes for them.
    """
    nodes = problem.vertex.shape[1]
    if config.kicks and (generator is None or nodes < 4):
        raise DataError(f"kicks must have a generator and 4 or more nodes, not {generator} and {nodes}", "bad_graph")
    where = problem.vertex.device
    with torch.autocast(where.type, enabled=False), SOLVER.running(where):
        ready = problem.with_values(*(_rounded(part) for part in (problem.vertex, problem.edge)))
        match = compiled.solve(ready, config.steps, config.rounds, config.beta, config.exchanges)
        if match is None:
            wide = ready.with_values(ready.vertex.double(), ready.edge.double())
            match = REPLAY(partial(_search, config=config), wide, config)
        if config.kicks and generator is not None:
            copies = ready.repeat(config.kicks)
            for _ in range(config.kick_rounds):
                match = _kick(ready, copies, match, config, generator)
        return match if candidate is None else better(ready, torch.stack([candidate, match]))


def _search(problem: Problem, config: SolverConfig) -> Int64[Tensor, "b N"]:
    """Soft match, rounding and exchanges of problems in float64."""
    match = round_greedily(softassign(problem, config.steps, config.rounds, config.beta), problem.vertex)
    return two_opt(problem, match, config.exchanges)


def _rounded(worth: Tensor) -> Tensor:
    return torch.round(worth.detach().float() / WORTH) * WORTH


def better(problem: Problem, matches: Int64[Tensor, "c b N"]) -> Int64[Tensor, "b N"]:
    """The best of several matches of each problem; of equally good ones the first."""
    # In float64, and a hair better at least: matches that only differ in spare nodes must not win by rounding.
    wide = problem.with_values(problem.vertex.double(), problem.edge.double())
    worth = torch.stack([score(wide, match) for match in matches])
    good = worth >= worth.amax(dim=0) - 1e-6
    first = good.long().argmax(dim=0)
    return matches.gather(0, first.view(1, -1, 1).expand(-1, -1, matches.shape[2])).squeeze(0)


def _kick(
    problem: Problem, copies: Problem, match: Int64[Tensor, "b N"], config: SolverConfig, generator: Generators
) -> Int64[Tensor, "b N"]:
    """The best of the match and of changed copies of it that were improved."""
    batch, nodes = match.shape
    each = [generator] if isinstance(generator, torch.Generator) else generator
    count = config.kicks * batch // len(each)
    drawn = [torch.rand(count, nodes, generator=one, device=match.device) for one in each]
    keys = torch.stack(drawn, dim=1).flatten(0, 1)
    chosen = keys.topk(4, dim=1).indices
    changed = match.repeat(config.kicks, 1)
    changed = changed.scatter(1, chosen, changed.gather(1, chosen.roll(1, dims=1)))
    found = two_opt(copies, changed, config.exchanges)
    return better(problem, torch.cat([match.unsqueeze(0), found.view(config.kicks, batch, nodes)]))
