"""Many rows of 64-bit numbers found by a 64-bit key, at 8 bytes a number."""

import hashlib
from array import array

import numpy as np


def key_of(*parts: object) -> int:
    """64 bits of a hash of some texts or numbers; names of files need not be UTF-8."""
    text = "\0".join(map(str, parts)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class Lookup:
    """Filled first, then asked.

    Args:
        width: Numbers of a row, the key not counted.
    """

    def __init__(self, width: int) -> None:
        self._keys = array("Q")
        self._values = [array("Q") for _ in range(width)]
        self._sorted = False

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: int, *values: int) -> None:
        """Add a row; equal keys may have several."""
        self._keys.append(key)
        for column, value in zip(self._values, values, strict=True):
            column.append(value)
        self._sorted = False

    def find(self, key: int) -> list[tuple[int, ...]]:
        """All rows of a key in the order in which they were added."""
        if not self._keys:
            return []
        if not self._sorted:
            self._sort()
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        first, last = (int(np.searchsorted(keys, np.uint64(key), side)) for side in ("left", "right"))
        return [tuple(column[place] for column in self._values) for place in range(first, last)]

    def _sort(self) -> None:
        order = np.argsort(np.frombuffer(self._keys, dtype=np.uint64), kind="stable")
        for column in (self._keys, *self._values):
            values = np.frombuffer(column, dtype=np.uint64)
            values[:] = values[order]
        self._sorted = True
