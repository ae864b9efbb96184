"""Sorting the frames of a series into volumes: echoes, phases, directions, planes of a scout."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from voxscale.errors import DataError
from voxscale.io.dicom_frames import KEYS, Frame

SAME_PLACE_MM = 1e-3
"""Slices nearer to each other than this along their normal are at one place."""
SAME_TURN = 1e-4
"""Directions whose cosines differ by less are one orientation."""


def volumes_of(frames: Sequence[Frame], same: Callable[[Frame, Frame], bool]) -> tuple[list[list[Frame]], list[str]]:
    """Split frames into volumes in which every slice has a place of its own.

    Frames are split by size and orientation first. Where slices still share a
    place, the first header values that tell them apart are used (`KEYS`), as
    few as possible, and never one that makes more volumes than slices share a
    place; failing that, the order of acquisition if every place is taken
    equally often.

    Args:
        frames: All frames, with geometry.
        same: Whether two frames hold the same pixels; asked only of frames with one UID at one place.

    Returns:
        The volumes, largest first, equal ones in order of their header values; notes on what was dropped or decided.

    Raises:
        DataError: With reason `duplicate_slices` if slices share a place and nothing tells them apart.
    """
    volumes: list[list[Frame]] = []
    notes: list[str] = []
    for alike in _planes(frames):
        single, copies = _without_copies(alike, same)
        if copies:
            notes.append(f"{copies} slices were there twice; one of each is used")
        volumes += _tell_apart(single, notes)
    volumes.sort(key=len, reverse=True)  # a stray scout must not come before the scan; equal ones keep their order
    return volumes, notes


def along(frame: Frame) -> float:
    """Place of a frame along its slice normal, in mm."""
    assert frame.corner is not None  # callers have checked the geometry
    assert frame.turn is not None
    return float(frame.corner @ np.cross(frame.turn[:3], frame.turn[3:]))


def _planes(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames of one size, one pixel spacing and one orientation together."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            first = group[0]
            assert first.turn is not None
            assert frame.turn is not None
            assert first.size is not None
            assert frame.size is not None
            fits = first.shape == frame.shape and np.allclose(first.size, frame.size, rtol=1e-4)
            if fits and np.abs(first.turn - frame.turn).max() < SAME_TURN:
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _places(frames: Sequence[Frame]) -> list[int]:
    """Number of each frame's place along the normal; frames at one place share a number."""
    values = np.array([along(frame) for frame in frames])
    order = np.argsort(values, kind="stable")
    numbers = np.empty(len(frames), dtype=int)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > SAME_PLACE_MM)])
    return numbers.tolist()


def _without_copies(frames: list[Frame], same: Callable[[Frame, Frame], bool]) -> tuple[list[Frame], int]:
    """Leave out frames that another one repeats, with the same UID, place and pixels."""
    kept: list[Frame] = []
    seen: dict[Hashable, Frame] = {}
    for frame, place in zip(frames, _places(frames), strict=True):
        twin = seen.get((frame.uid, place)) if not frame.uid.startswith("/") else None
        if twin is not None and same(twin, frame):
            continue
        seen.setdefault((frame.uid, place), frame)
        kept.append(frame)
    return kept, len(frames) - len(kept)


def _tell_apart(frames: list[Frame], notes: list[str]) -> list[list[Frame]]:
    """Volumes of frames of one plane."""
    places = _places(frames)
    most = max(Counter(places).values())
    if most == 1:
        return [frames]
    chosen: list[int] = []
    for key in range(len(KEYS)):
        tried = [*chosen, key]
        groups = {_values(frame, tried) for frame in frames}
        if len({_values(frame, chosen) for frame in frames}) < len(groups) <= most:
            chosen = tried
        taken = Counter((_values(frame, chosen), place) for frame, place in zip(frames, places, strict=True))
        if max(taken.values()) == 1:
            return _split(frames, [_values(frame, chosen) for frame in frames])
    if len(set(Counter(places).values())) == 1:
        notes.append(
            "the series repeats its slices without saying why; the order of acquisition tells its volumes apart"
        )
        return _split(frames, _rounds(frames, places))
    raise DataError(
        "dicom series must have one slice per position, not several phases, echoes or copies that nothing tells apart",
        "duplicate_slices",
    )


def _values(frame: Frame, keys: Sequence[int]) -> tuple[str, ...]:
    return tuple(frame.keys[key] for key in keys)


def _rounds(frames: Sequence[Frame], places: Sequence[int]) -> list[tuple[str, ...]]:
    """How many frames came before each one at its place."""
    order = sorted(range(len(frames)), key=lambda i: (frames[i].instance, frames[i].index, i))
    count: Counter[int] = Counter()
    rounds = [("",)] * len(frames)
    for i in order:
        rounds[i] = (f"{count[places[i]]:06d}",)
        count[places[i]] += 1
    return rounds


def _split(frames: Sequence[Frame], names: Sequence[tuple[str, ...]]) -> list[list[Frame]]:
    """Frames by name, in order of the names; numbers sort as numbers."""
    groups: dict[tuple[str, ...], list[Frame]] = {}
    for frame, name in zip(frames, names, strict=True):
        groups.setdefault(name, []).append(frame)
    return [groups[name] for name in sorted(groups, key=lambda name: [_sortable(part) for part in name])]


def _sortable(text: str) -> tuple[float, str]:
    """Numbers by value, what is not said before them, words after them."""
    if not text:
        return float("-inf"), ""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text
