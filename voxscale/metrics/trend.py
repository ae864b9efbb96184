"""What a curve of few noisy points does, by a stated rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

LEAST = 3
"""Points from which on anything is said."""

LOST = 0.5
"""Share of its height above the floor that a collapsed curve has lost."""

Kind = Literal["unknown", "rising", "flat", "falling", "collapsed"]


@dataclass(frozen=True, slots=True)
class Trend:
    """What a curve does at its end.

    Attributes:
        kind: See `trend`.
        since: Step since which it does; the first one where it always did.
    """

    kind: Kind
    since: float

    def sentence(self) -> str:
        """Such as `rising` or `flat since step 200`."""
        words = {"unknown": f"too few points to tell ({LEAST} are needed)", "rising": "rising"}
        words |= {"collapsed": f"collapsed after step {self.since:g}"}
        return words.get(self.kind, f"{self.kind} since step {self.since:g}")


def trend(steps: Sequence[float], values: Sequence[float], floor: float = 0.0) -> Trend:
    """Say whether a figure that should be high rises, stands still or is lost.

    The values are first smoothed: each becomes the median of itself and its two neighbours, at both ends of
    the two last values their mean. What differs by less than the tolerance is equal; the tolerance is the larger
    of twice the noise of a value (the median size of second differences, over 1.65, which is a deviation where
    noise is normal) and 2 % of the greatest height above the floor. Then, in this order:

    - `collapsed`: the end stands above the floor by less than half of what the highest point does, and is below
      that point by more than the tolerance; since the last point that is as high;
    - `rising`: the end is above everything in the first two thirds by more than the tolerance;
    - `falling`: the end is below the highest point by more than twice the tolerance; since the last point as high;
    - `flat`: else; since the first point from which on all are within the tolerance of the end.

    Args:
        steps: Rising.
        values: One for each step.
        floor: What the figure is if nothing has been learnt, such as its shuffled control.
    """
    if len(values) < LEAST:
        return Trend("unknown", steps[0] if len(steps) else 0.0)
    data = np.asarray(values, dtype=np.float64)
    smooth = np.array([median(data[at - 1 : at + 2]) for at in range(1, len(data) - 1)])
    smooth = np.concatenate([[data[:2].mean()], smooth, [data[-2:].mean()]])
    noise = float(np.median(np.abs(np.diff(data, 2)))) / 1.65 if len(data) > LEAST else 0.0
    top = int(smooth.argmax())
    height, end = float(smooth[top]) - floor, float(smooth[-1])
    close = max(2 * noise, 0.02 * max(height, 0.0))
    lost = float(smooth[top]) - end
    left = int(np.flatnonzero(smooth >= smooth[top] - close)[-1])
    if lost > close and end - floor < (1 - LOST) * height:
        return Trend("collapsed", steps[left])
    if end - float(smooth[: max(1, 2 * len(smooth) // 3)].max()) > close:
        return Trend("rising", steps[0])
    if lost > 2 * close:
        return Trend("falling", steps[left])
    away = np.flatnonzero(np.abs(smooth - end) > close)
    return Trend("flat", steps[int(away[-1]) + 1 if len(away) else 0])
