"""`PatchStream`: what training reads, and how a damaged sample is replaced."""

from collections.abc import Callable
from typing import Protocol

from voxscale.batch import Patch
from voxscale.errors import DataError

Sample = tuple[list[Patch], list[tuple[str, str]]]
"""Patches of one sample, and (volume, reason) of every first choice that had to be replaced."""
TRIES = 8
"""Choices in a row that may be damaged before a stream gives up."""


class PatchStream(Protocol):
    """Anything that makes the patches of a global sample index."""

    def sample(self, index: int, spare: int = 0) -> Sample:
        """The patches (views of one scan) of one sample.

        Args:
            index: Global sample index.
            spare: First choices to pass over; 0 is the sample itself, 1 its first replacement, and so on.
        """
        ...


def first_intact(
    draw: Callable[[int], tuple[str, Callable[[], list[Patch]]]], spare: int, tries: int = TRIES
) -> Sample:
    """The first choice of a sample that can be read; which one that is depends on the data alone.

    Args:
        draw: Maps the number of a choice to its volume and a function that reads it.
        spare: The first choice to try.
        tries: Choices that there are, if they are few; of a single one its own error is raised.

    Raises:
        DataError: If several choices in a row are damaged.
    """
    bad: list[tuple[str, str]] = []
    last, tries = "", min(tries, TRIES)
    for choice in range(spare, spare + tries):
        volume = ""  # as long as a damaged index does not tell
        try:
            volume, read = draw(choice)
            return read(), bad
        except DataError as error:
            if error.reason != "corrupt" or tries == 1:
                raise
            bad.append((volume, error.reason))
            last = str(error)
    raise DataError(f"data must be readable; {tries} choices in a row were damaged, at last: {last}", "corrupt")
