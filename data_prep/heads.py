"""What a mirror needs to know of objects: whose header their first bytes hold whole, and which names files can have."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.files import starts_as_dicom
from voxscale.remote import Stamp

HEADS = (1 << 16, 1 << 20, 1 << 24)
"""Bytes fetched for discovery: the first of all objects, the others only of DICOM whose pixels do not begin before."""
PIXELS = (b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00")
ICON = b"\x88\x00\x00\x02"
"""Sequence with a small picture, whose own pixels come before the object's."""


def is_dicom_cut(path: Path, head: bytes, size: int) -> bool:
    """Whether a file is DICOM by its name or first bytes, and its header goes on behind them.

    It ends within them if pixel data begin there that reach to the end of the
    file (within the shortest head), or whose length is not told. What is
    compressed as a whole, big-endian or holds an icon is taken for cut.
    """
    if starts_as_dicom(path, head[:132]) is False:
        return False
    return ICON in head or not any(_reaches_end(head, place, size) for place in _places(head))


def _places(head: bytes) -> Iterator[int]:
    for tag in PIXELS:
        place = head.find(tag)
        while place >= 0:
            yield place
            place = head.find(tag, place + 1)


def _reaches_end(head: bytes, place: int, size: int) -> bool:
    """Whether the element at a place is pixel data up to the end of the file."""
    explicit = head[place + 4 : place + 6] in (b"OW", b"OB", b"OF", b"OD")
    begin = place + (12 if explicit else 8)
    length = int.from_bytes(head[begin - 4 : begin], "little")
    if begin > len(head):
        return False
    return (explicit and length == 0xFFFFFFFF) or size - HEADS[0] <= begin + length <= size


def usable(listed: Mapping[str, Stamp]) -> list[str]:
    """Names that can be files below a folder: relative, without `..`, and none is the folder of another."""
    good = [name for name in listed if _is_file_name(name)]
    folders = {name[:place] for name in good for place in range(len(name)) if name[place] == "/"}
    return [name for name in good if name not in folders]


def _is_file_name(name: str) -> bool:
    parts = name.split("/")
    if "\0" in name or len(name.encode(errors="surrogatepass")) > 3000:
        return False
    return all(part not in ("", ".", "..") and len(part.encode(errors="surrogatepass")) <= 255 for part in parts)
