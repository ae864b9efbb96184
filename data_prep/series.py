"""DICOM files of one root sorted into series, and the segmentations and structure sets drawn on them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_prep.source import Source
from voxscale.errors import DataError
from voxscale.io.dicom_header import read_headers
from voxscale.io.dicom_seg import read_seg_header
from voxscale.io.isolate import run_isolated
from voxscale.io.rtstruct import read_rtstruct_header
from voxscale.io.structures import Structure, StructureHeader

HEADERS_AT_ONCE = 500
AFTERWARDS_S = 20.0
"""Seconds for the headers of one such lot once a file of the root has hung its reader."""
ALONE_S = (10.0, 2.0)
"""Seconds for one header of a lot that took too long: of the first `MANY` files that hang, and of all others."""
MANY = 10

Header = dict[str, str]


@dataclass(slots=True)
class Series:
    """Files of one series, which may lie in several folders.

    Attributes:
        header: Of its first file.
        files: In the order in which they were found.
    """

    header: Header
    files: list[Path] = field(default_factory=list)


@dataclass(slots=True)
class Drawn:
    """A segmentation or structure set, before it is linked to its image."""

    path: Path
    kind: Literal["seg", "rtstruct"]


@dataclass(slots=True)
class Reader:
    """Reads headers in processes of their own.

    What files that hang their readers cost in all is bounded by `seconds`, then
    `AFTERWARDS_S` for each further lot with such a file, and `ALONE_S` for each such file.

    Attributes:
        seconds: Time limit.
        gigabytes: Memory limit.
        hung: Files whose header took too long.
    """

    seconds: float
    gigabytes: float
    hung: set[Path] = field(default_factory=set)

    def headers(self, paths: list[Path]) -> list[Header | None]:
        """Headers of possible DICOM files; a file that breaks its reader counts as unreadable."""
        if len(paths) > HEADERS_AT_ONCE:
            return self.headers(paths[:HEADERS_AT_ONCE]) + self.headers(paths[HEADERS_AT_ONCE:])
        if not paths:
            return []
        try:
            return self._read(paths, min(self.seconds, AFTERWARDS_S) if self.hung else self.seconds)
        except DataError as error:
            if error.reason == "timeout":
                return [self._alone(path) for path in paths]
            if len(paths) == 1:
                return [None]
            half = len(paths) // 2
            return self.headers(paths[:half]) + self.headers(paths[half:])

    def _read(self, paths: list[Path], seconds: float) -> list[Header | None]:
        return run_isolated(read_headers, ([str(path) for path in paths],), seconds, self.gigabytes)

    def _alone(self, path: Path) -> Header | None:
        try:
            return self._read([path], min(self.seconds, ALONE_S[len(self.hung) >= MANY]))[0]
        except DataError as error:
            if error.reason == "timeout":
                self.hung.add(path)
            return None

    def drawn(self, each: Drawn) -> StructureHeader | None:
        """What a label object refers to, or None if it cannot be read."""
        try:
            found = run_isolated(_drawn, (str(each.path), each.kind), self.seconds, self.gigabytes)
        except DataError:
            return None
        structures = tuple(Structure(**part) for part in found["structures"])
        return StructureHeader(tuple(found["series"]), found["frame_of_reference"], structures)


def _drawn(path: str, kind: str) -> dict[str, Any]:
    return asdict(read_seg_header(Path(path)) if kind == "seg" else read_rtstruct_header(Path(path)))


def link(sources: list[Source], drawn: list[Drawn], reader: Reader, root: Path) -> Iterator[Source]:
    """Give each series its label object; yields all sources, then rows for the objects that found no image.

    A segmentation goes before a structure set, then the one with more
    structures; a second one of a series is reported, not merged.

    Args:
        sources: Image series, with their UIDs.
        drawn: Label objects of the same root.
        reader: Reads their headers.
        root: Of all of them.
    """
    headers = [(each, reader.drawn(each)) for each in drawn]
    order = sorted(headers, key=lambda p: (p[0].kind != "seg", -len(p[1].structures) if p[1] else 0, p[0].path))
    by_series = {source.series: place for place, source in enumerate(sources) if source.series}
    left: list[Source] = []
    for each, header in order:
        problem: tuple[str, str] | None = ("unreadable", "label: its header cannot be read")
        if header is not None:
            places = [by_series[uid] for uid in header.series if uid in by_series]
            free = [place for place in places if not sources[place].label]
            problem = ("no_image", "no image series of the source is the one it was drawn on")
            if places:
                problem = ("extra_label", "its image has another label already")
            if free:
                source = sources[free[0]]
                sources[free[0]] = replace(
                    source, label=(each.path,), label_format=each.kind, label_names=header.structures
                )
                continue
        place = each.path.relative_to(root).as_posix()
        left.append(Source((each.path,), place, each.path.parent.name, kind="label", dicom=True, problem=problem))
    yield from sources
    yield from sorted(left, key=lambda source: source.place)
