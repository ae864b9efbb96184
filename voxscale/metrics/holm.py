"""Correction of p values for the number of tests."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false finding below the level.

    The k-th smallest of m is multiplied by m - k + 1, and none may fall below a
    smaller one's (Holm 1979, "A simple sequentially rejective multiple test
    procedure").

    Args:
        p_values: One per test, in any order.

    Returns:
        In the same order, at most 1.
    """
    out, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        out[place] = highest
    return out
