"""A batch of second-order graph matching problems, edges kept as lists."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from voxscale.errors import DataError


@dataclass(frozen=True, slots=True)
class Problem:
    """What a match of two graphs is worth (LVM-Med, Eq. 4: Lawler's form of the quadratic assignment problem).

    A match is a permutation of N; node i of the source goes to node `match[i]`
    of the target. Nodes beyond the first n and m have no edges: see
    `voxscale.matching.dustbin`, which appends them.

    Attributes:
        vertex: (b, N, N) what matching source node i with target node a is worth.
        edge: (b, n, k, m, k) what matching edge p of source node i with edge q of target node a is worth.
        source: (b, n, k) the node at the end of each source edge.
        target: (b, m, k) the node at the end of each target edge.
    """

    vertex: Float[Tensor, "b N N"]
    edge: Float[Tensor, "b n k m l"]
    source: Int64[Tensor, "b n k"]
    target: Int64[Tensor, "b m l"]

    def __post_init__(self) -> None:
        """Check shapes; raises `DataError`."""
        shape = tuple(self.vertex.shape)
        if len(shape) != 3 or shape[1] != shape[2]:
            raise DataError(f"problem.vertex must be (b, N, N), not {shape}", "bad_graph")
        for name, nodes in (("source", self.source), ("target", self.target)):
            if nodes.ndim != 3 or len(nodes) != shape[0] or not 1 <= nodes.shape[1] <= shape[1]:
                raise DataError(
                    f"problem.{name} must be (b, n, k) with n up to {shape[1]}, not {nodes.shape}", "bad_graph"
                )
        wanted = (*self.source.shape, *self.target.shape[1:])
        if tuple(self.edge.shape) != wanted:
            raise DataError(f"problem.edge must be {wanted}, not {tuple(self.edge.shape)}", "bad_graph")

    def with_values(self, vertex: Tensor, edge: Tensor) -> "Problem":
        """The same graphs with other worths."""
        return Problem(vertex=vertex, edge=edge, source=self.source, target=self.target)

    def repeat(self, times: int) -> "Problem":
        """Every problem several times, copies of all problems one after another."""
        return Problem(
            vertex=self.vertex.repeat(times, 1, 1),
            edge=self.edge.repeat(times, 1, 1, 1, 1),
            source=self.source.repeat(times, 1, 1),
            target=self.target.repeat(times, 1, 1),
        )
