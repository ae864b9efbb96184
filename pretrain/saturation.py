"""Volume Fusion's task can be solved; from then on it teaches no more, and somebody should be told."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("voxscale")

SOLVED = 0.95
"""Mean Dice of the likeliest levels from which on the task counts as solved."""

LINES = 5
"""Lines of metrics in a row that must be that high."""

KEYS = ("pretext_dice", "volume_fusion/pretext_dice")
"""Names of the Dice where Volume Fusion is alone, and among others."""


@dataclass(frozen=True, slots=True)
class Saturated:
    """A solved task.

    Attributes:
        step: From which on it is.
        dice: Mean of the lines since.
    """

    step: int
    dice: float

    def text(self) -> str:
        """What is the case and what to change, to follow "Volume Fusion is"."""
        return (
            f"solved since step {self.step} (Dice {self.dice:.3f}) and teaches little more: raise"
            " objective.volume_fusion.levels, lower its block_min and block_max, or change values more (views.contrast,"
            " views.gamma); objective.volume_fusion.ordinal_weight does not help against this."
        )


def saturated_since(rows: Sequence[Mapping[str, Any]]) -> Saturated | None:
    """Whether the last lines of metrics, at least `LINES` of them, all show a solved task.

    Args:
        rows: Lines of metrics; those without a Dice are passed over.
    """
    found = [(int(row["step"]), float(row[key])) for row in rows for key in KEYS if isinstance(row.get(key), float)]
    high = 0
    while high < len(found) and found[-1 - high][1] >= SOLVED:
        high += 1
    if high < LINES:
        return None
    last = found[-high:]
    return Saturated(last[0][0], sum(dice for _, dice in last) / high)


class SaturationWatch:
    """Warns once when the task is solved; told of each line of metrics."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self._told = False

    def hear(self, row: Mapping[str, Any]) -> None:
        """Take in a line."""
        self._rows = [*self._rows[1 - 2 * LINES :], row]
        since = None if self._told else saturated_since(self._rows)
        if since is not None:
            self._told = True
            log.warning("pretrain: Volume Fusion is %s", since.text())
