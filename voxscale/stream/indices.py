"""Which global samples a rank reads."""

from collections.abc import Iterator

from voxscale.config import require


def rank_indices(start: int, steps: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[list[int]]:
    """Global indices of each micro-batch of one rank.

    Step s of a run reads indices s * batch ... (s + 1) * batch - 1: micro-batch
    by micro-batch, and within one, rank by rank.

    Args:
        start: First step.
        steps: Steps of the whole run.
        batch: Samples per step over all ranks.
        accumulate: Micro-batches per step.
        rank: Of this process.
        world: Number of processes; times `accumulate` it divides `batch`.

    Raises:
        ConfigError: If it does not, at once.
    """
    parts = accumulate * world
    require(batch % parts == 0, "loop.batch", f"a multiple of {parts} (accumulate {accumulate} x {world} ranks)", batch)
    return _indices(start, steps, batch, accumulate, rank, world)


def _indices(start: int, steps: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[list[int]]:
    micro = batch // (accumulate * world)
    for step in range(start, steps):
        for part in range(accumulate):
            first = step * batch + (part * world + rank) * micro
            yield list(range(first, first + micro))
