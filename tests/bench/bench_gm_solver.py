"""Second-order graph matching against RRWM of pygmtools: `make bench ONLY=gm_solver`.

`ratio` is the geometric mean over six cells (n = 16, 32, 64 nodes; Gumbel noise
of scale 0.05 and 1) of RRWM's CPU time through ours. Both solve the same batches
of 12 graphs on one thread; RRWM's dense matrix is built within its time, and its
answer is rounded by a linear assignment. Goals: the ratio 5, the worst cell 3, and
in each cell a median worth of at least RRWM's.
"""

import math
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pygmtools
import torch
from graph_instances import REGIMES, instances
from harness import alternate, finish
from torch import Tensor

from voxscale.matching import compiled
from voxscale.matching.problem import Problem
from voxscale.matching.score import score
from voxscale.matching.solver import SolverConfig, solve

GOAL, WORST = 5.0, 3.0
BATCH = 12
BATCHES = 2
ROUNDS = {16: 20, 32: 5, 64: 2}


def edge_list(edges: Tensor) -> Tensor:
    """Begin and end of each edge, as pygmtools wants them."""
    batch, nodes, k = edges.shape
    begins = torch.arange(nodes).view(1, -1, 1).expand(batch, -1, k)
    return torch.stack([begins, edges], dim=3).flatten(1, 2)


def rrwm(problem: Problem, transposed: bool = False) -> Tensor:
    """Dense matrix, random walks with their default settings, linear assignment.

    The walks want a symmetric matrix; with that of directed edges as it stands
    their matches are some 10 % worse. Transposed, they are sometimes better.
    """
    batch, nodes, k = problem.source.shape
    matrix = pygmtools.utils.build_aff_mat(
        problem.vertex,
        problem.edge.reshape(batch, nodes * k, nodes * k),
        edge_list(problem.source),
        problem.vertex,
        problem.edge.reshape(batch, nodes * k, nodes * k),
        edge_list(problem.target),
        node_aff_fn=lambda first, _: first,
        edge_aff_fn=lambda first, _: first,
    )
    matrix = matrix.mT.contiguous() if transposed else ((matrix + matrix.mT) / 2).clamp_(min=0)
    walks = pygmtools.rrwm(matrix, n1max=nodes, n2max=nodes)
    return pygmtools.hungarian(walks).argmax(dim=2)


def cell(nodes: int, regime: str) -> dict[str, float]:
    """Times per graph and median worths of one cell."""
    whole = instances(BATCH * BATCHES, nodes, regime)
    parts = [torch.split(part, BATCH) for part in (whole.vertex, whole.edge, whole.source, whole.target)]
    problems = [Problem(vertex=v, edge=e, source=s, target=t) for v, e, s, t in zip(*parts, strict=True)]
    config, kept = SolverConfig(steps=160, exchanges=nodes), {}  # at 40, RRWM was better in one cell of six

    def ours() -> None:
        kept["ours"] = torch.cat([score(p, solve(p, config)) for p in problems])

    def theirs() -> None:
        kept["rrwm"] = torch.cat([score(p, rrwm(p)) for p in problems])

    times = alternate(ours, theirs, ROUNDS[nodes])
    other = torch.cat([score(p, rrwm(p, transposed=True)) for p in problems])
    kept["rrwm"] = kept["rrwm"].maximum(other)  # the better of two answers at the time of one
    mine, peer = (statistics.median(t) / (BATCH * BATCHES) * 1e3 for t in times)
    truth = score(whole, torch.arange(nodes).expand(BATCH * BATCHES, nodes))
    return {
        "speed": round(statistics.median(b / a for a, b in zip(*times, strict=True)), 2),
        "ms": round(mine, 3),
        "rrwm_ms": round(peer, 3),
        "worth": round(kept["ours"].median().item(), 3),
        "rrwm_worth": round(kept["rrwm"].median().item(), 3),
        "identity_worth": round(truth.median().item(), 3),
        "at_least_rrwm": round((kept["ours"] >= kept["rrwm"] - 1e-3).float().mean().item(), 3),
        "median_gain_percent": round(100 * ((kept["ours"] - kept["rrwm"]) / kept["rrwm"]).median().item(), 3),
    }


def main() -> None:
    """Measure all cells."""
    torch.set_num_threads(1)
    pygmtools.set_backend("pytorch")
    cells = {f"n{nodes}_{regime}": cell(nodes, regime) for nodes in ROUNDS for regime in REGIMES}
    ratio = math.exp(statistics.mean(math.log(one["speed"]) for one in cells.values()))
    worst = min(one["speed"] for one in cells.values())
    good = all(one["worth"] >= one["rrwm_worth"] for one in cells.values())
    finish(
        "gm_solver",
        ratio,
        GOAL,
        ratio >= GOAL and worst >= WORST and good,
        worst=worst,
        worst_goal=WORST,
        worth_at_least_rrwm=good,
        cells=cells,
        kernel=compiled.load() is not None,
        batch=BATCH,
        graphs=BATCH * BATCHES,
        threads=1,
        pygmtools=pygmtools.__version__,
    )


if __name__ == "__main__":
    main()
