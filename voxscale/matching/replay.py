"""A function of problems as one launch on a GPU, where thousands of small kernels would wait for the host."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Int64
from torch import Tensor

from voxscale.matching.problem import Problem

Solve = Callable[[Problem], Int64[Tensor, "b N"]]

AFTER = 1
"""Calls with the same shapes that are done kernel by kernel before they are recorded: one call is not worth it."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    problem: Problem
    match: Int64[Tensor, "b N"]


class Replay:
    """Records what a function launches for problems of some shapes, and launches it again at once for the next ones.

    The kernels are those of a plain call, so are the bits. A record keeps its inputs, its answer and what lies between;
    it holds for one function, one device and one set of shapes.

    Args:
        most: Records that are kept; the one that was used longest ago goes first.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._known: OrderedDict[Hashable, _Recorded | int] = OrderedDict()

    def __len__(self) -> int:
        return sum(isinstance(one, _Recorded) for one in self._known.values())

    @torch.no_grad()
    def __call__(self, function: Solve, problem: Problem, name: Hashable) -> Int64[Tensor, "b N"]:
        """The answer of a function that draws nothing, reads nothing back, and knows nothing but the problem.

        Args:
            function: Of b problems.
            problem: These; on anything but a CUDA device the function is called as it is.
            name: Tells functions apart.
        """
        where = problem.vertex.device
        if where.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return function(problem)
        parts = [getattr(problem, part.name) for part in fields(problem)]
        key = (name, where, *((part.shape, part.dtype) for part in parts))
        known = self._known.pop(key, 0)
        if isinstance(known, int) and known < AFTER:
            self._keep(key, known + 1)
            return function(problem)
        if isinstance(known, int):
            known = _record(function, Problem(*(part.clone() for part in parts)))
        self._keep(key, known)
        for part, mine in zip(parts, fields(problem), strict=True):
            getattr(known.problem, mine.name).copy_(part)
        known.graph.replay()
        return known.match.clone()

    def _keep(self, key: Hashable, value: _Recorded | int) -> None:
        self._known[key] = value
        while len(self._known) > self._most:
            self._known.popitem(last=False)


def _record(function: Solve, problem: Problem) -> _Recorded:
    device = problem.vertex.device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        function(problem)  # libraries make their workspaces of this stream now, which a recording could not
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Threads that copy batches or checkpoints go on meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        match = function(problem)
    return _Recorded(graph, problem, match)
