"""The solver's steps in the compiled kernel, for problems on the CPU."""

import ctypes
from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from voxscale.errors import DataError
from voxscale.kernel import library
from voxscale.matching.problem import Problem


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The compiled library with the types of this function; None as in `library`."""
    found = library()
    if found is None:
        return None
    pointer, whole, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    found.match_graphs.argtypes = [
        pointer, pointer, pointer, pointer, whole, pointer, whole, whole, real, real, whole, pointer
    ]  # fmt: skip
    found.match_graphs.restype = None
    return found


def solve(
    problem: Problem, steps: int, rounds: int, beta: tuple[float, float], exchanges: int
) -> Int64[Tensor, "b N"] | None:
    """What `softassign`, `round_greedily` and `two_opt` give; None if it must be done by them.

    The soft match is computed in another order of operations, so matches can
    differ where entries of it are equal but for rounding.

    Args:
        problem: b problems in float32.
        steps: Values of beta.
        rounds: Normalisations at each of them.
        beta: First and last value.
        exchanges: Exchanges of two nodes at most.

    Raises:
        DataError: If an edge ends at a node that is not there.
    """
    native = load() if problem.vertex.device.type == "cpu" else None
    if native is None or problem.vertex.dtype != torch.float32 or problem.edge.dtype != torch.float32:
        return None
    parts = [part.contiguous() for part in (problem.vertex, problem.edge, problem.source, problem.target)]
    batch, n, k, m, width = problem.edge.shape
    for name, nodes, most in (("source", parts[2], n), ("target", parts[3], m)):
        if nodes.dtype != torch.long or nodes.min() < 0 or nodes.max() >= most:
            raise DataError(f"problem.{name} must be int64 from 0 to {most - 1}, not beyond", "bad_graph")
    shape = torch.tensor([problem.vertex.shape[1], n, k, m, width])
    match = torch.empty(problem.vertex.shape[:2], dtype=torch.long)
    native.match_graphs(
        *(part.data_ptr() for part in parts), batch, shape.data_ptr(), steps, rounds, *beta, exchanges, match.data_ptr()
    )  # fmt: skip
    return match
