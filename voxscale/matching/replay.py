"""A function of problems as one launch on a GPU, where thousands of small kernels would wait for the host."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Int64
from torch import Tensor

from voxscale.matching.problem import Problem

log = logging.getLogger("voxscale")

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
        self._records: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._calls: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._records)

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
        record = self._records.pop(key, None)
        if record is None:
            self._calls[key] += 1
            # Shapes whose record was dropped again are too many for it to pay.
            if self._calls[key] != AFTER + 1:
                return function(problem)
            try:
                record = _record(function, Problem(*(part.clone() for part in parts)))
            except torch.OutOfMemoryError:
                log.warning(
                    "matching: no memory to record the solver on this device, so its kernels are launched one by one"
                )
                return function(problem)
        self._records[key] = record
        while len(self._records) > self._most:
            self._records.popitem(last=False)
        for part, mine in zip(parts, fields(problem), strict=True):
            getattr(record.problem, mine.name).copy_(part)
        record.graph.replay()
        return record.match.clone()


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
