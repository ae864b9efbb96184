"""`--part K/N`: which worker of how many this is."""

import re
from dataclasses import dataclass

from voxscale.config import require


@dataclass(frozen=True, slots=True)
class Part:
    """One worker of several that share a job without talking to each other.

    Attributes:
        number: From 1 to `of`.
        of: How many workers there are.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(1 <= self.number <= self.of, "part", "K/N with K from 1 to N", f"{self.number}/{self.of}")

    @property
    def name(self) -> str:
        """For files and folders of this worker."""
        return f"{self.number}-of-{self.of}"

    def owns(self, place: int) -> bool:
        """Whether the piece at a place of the list of all pieces is this worker's."""
        return place % self.of == self.number - 1


def parse_part(text: str) -> Part:
    """Read `K/N`; raises `ConfigError`."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    require(found is not None, "part", "K/N with K from 1 to N", text)
    assert found is not None
    return Part(int(found.group(1)), int(found.group(2)))
