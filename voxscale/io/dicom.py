"""DICOM series: CT and MR volumes from files, enhanced files and mosaics; radiographs and other 2D images."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from voxscale.errors import DataError
from voxscale.io.dicom_frames import Frame, frames_of
from voxscale.io.dicom_group import volumes_of
from voxscale.io.dicom_header import (
    PLANAR,
    SECONDARY,
    VOLUMES,
    class_name,
    class_uid,
    is_blank,
    plain_errors,
    read_headers,
)
from voxscale.io.dicom_pixels import decode, same_pixels
from voxscale.io.dicom_stack import Stack, axes_of, regrid, stack
from voxscale.io.dicom_technique import image_type, technique
from voxscale.io.loaded import Loaded, ReadConfig
from voxscale.io.storage import Raw, make_raw
from voxscale.volume import Modality, Volume

__all__ = ["count_volumes", "load_series", "read_headers", "read_series"]

OUTSIDE_HU = -1024.0


def read_series(paths: Sequence[Path]) -> Volume:
    """Read the first volume of a series; see `load_series`."""
    return load_series(paths).volume()


def load_series(paths: Sequence[Path], part: int = 0, settings: ReadConfig | None = None) -> Loaded:
    """Read and check one volume of one series.

    A series may hold several volumes (echoes, phases, diffusion directions,
    planes of a scout); radiographs, ultrasound and photographs make one 2D
    image per frame. Headers of all files are read, pixels only of the volume
    asked for.

    Args:
        paths: Its files, in any order.
        part: Which volume.
        settings: What may be mended; None takes the defaults.

    Raises:
        DataError: With reason `unreadable`, `not_an_image`, `bad_modality`, `secondary_capture`, `localizer`,
            `projection`, `burned_in`, `bad_dtype`, `mixed_series`, `missing_geometry`, `single_slice`,
            `bad_header`, `duplicate_slices`, `uneven_slices`, `missing_slices`, `bad_scaling`, `truncated`,
            `undecodable` or `no_such_volume`.
        GeometryError: With reason `bad_affine`, or `sheared` for a tilted gantry.
    """
    with plain_errors("dicom header must hold allowed values", "bad_header"):
        return _load(paths, part, settings or ReadConfig())


def _load(paths: Sequence[Path], part: int, settings: ReadConfig) -> Loaded:
    headers, modalities, frames = _survey(paths)
    if class_uid(headers[0]) in PLANAR:
        return _planar(paths, headers, frames, part, modalities[0], [])
    _check_geometry(frames)
    volumes, notes = volumes_of(frames, lambda a, b: _same_slices(paths, a, b))
    chosen = _choose(volumes, part)
    if len(chosen) == 1 and settings.single_slice == "accept":
        found = _planar(paths, headers, chosen, 0, modalities[0], notes)
        return Loaded(found.raw, found.modality, part, len(volumes), True, found.notes, found.technique)
    if "LOCALIZER" in image_type(headers[chosen[0].file]):
        raise DataError("dicom series must be a scan, not a localizer", "localizer")
    found = stack(chosen, settings.irregular)
    raw, more = _assemble(paths, found, modalities[0])
    told = technique(headers[chosen[0].file])
    return Loaded(raw, modalities[0], part, len(volumes), notes=(*notes, *more), technique=told)


def _survey(paths: Sequence[Path]) -> tuple[list[Dataset], list[Modality], list[Frame]]:
    """Headers, modalities and frames of a series, after the checks that need no geometry."""
    headers = [_read(path, pixels=False) for path in paths]
    modalities: list[Modality] = [_check_class(item) for item in headers]
    _same("one kind of storage class", modalities)
    _same("the same storage class", [class_uid(item) for item in headers])
    _same("one SeriesInstanceUID", [str(item.get("SeriesInstanceUID") or "") for item in headers])
    return headers, modalities, [frame for file, item in enumerate(headers) for frame in frames_of(item, file)]


def count_volumes(paths: Sequence[Path]) -> int:
    """How many volumes a series holds, so that one that cannot be used does not hide the others.

    Raises:
        DataError: If that cannot be told; see `load_series`.
    """
    with plain_errors("dicom header must hold allowed values", "bad_header"):
        headers, _, frames = _survey(paths)
        if class_uid(headers[0]) in PLANAR:
            return len(frames)
        _check_geometry(frames)
        return len(volumes_of(frames, lambda a, b: _same_slices(paths, a, b))[0])


def _choose(volumes: Sequence[list[Frame]], part: int) -> list[Frame]:
    if not 0 <= part < len(volumes):
        raise DataError(f"dicom.part must be 0 to {len(volumes) - 1}, not {part}", "no_such_volume")
    return volumes[part]


def _same(what: str, found: Sequence[object]) -> None:
    if len(set(found)) != 1:
        raise DataError(f"dicom series must have {what}, not {len(set(found))} different ones", "mixed_series")


def _read(path: Path, pixels: bool) -> Dataset:
    with plain_errors("dicom file must be readable", "unreadable"):
        if is_blank(path):
            raise DataError("dicom file must begin as such, not with zeros", "unreadable")
        return pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)


def _check_class(item: Dataset) -> Modality:
    """The modality of one file, after checks that need neither geometry nor pixels."""
    known = class_uid(item)
    kinds = image_type(item)
    if not known:
        raise DataError("dicom file must name its storage class", "unreadable")
    if known in SECONDARY:
        raise DataError("dicom file must be a scan, not a secondary capture", "secondary_capture")
    if "Image Storage" not in class_name(known):
        raise DataError(f"dicom file must be an image, not {class_name(known)}", "not_an_image")
    if known not in VOLUMES and known not in PLANAR:
        raise DataError(f"dicom file must be a CT, MR or 2D image, not {class_name(known)}", "bad_modality")
    if str(item.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        raise DataError("dicom image must not have text burned in, which may name the patient", "burned_in")
    if {"PROJECTION IMAGE", "MIP", "MINIP", "SCREEN SAVE", "SCREENSHOT"} & set(kinds):
        raise DataError("dicom series must show slices, not projections or screenshots", "projection")
    if known in VOLUMES and int(item.get("SamplesPerPixel") or 1) != 1:
        raise DataError("dicom image must have one sample per pixel, not colour", "bad_dtype")
    if "PALETTE" in str(item.get("PhotometricInterpretation") or "").upper():
        raise DataError("dicom pixels must be grey values or colours, not places in a palette", "bad_dtype")
    if item.get("ModalityLUTSequence"):
        raise DataError("dicom image must be scaled by slope and intercept, not by a table", "bad_scaling")
    return VOLUMES.get(known) or PLANAR[known]


def _check_geometry(frames: Sequence[Frame]) -> None:
    fields = {"ImagePositionPatient": "corner", "ImageOrientationPatient": "turn", "PixelSpacing": "size"}
    for tag, name in fields.items():
        missing = sum(getattr(frame, name) is None for frame in frames)
        if missing:
            text = f"dicom.{tag} must be given as numbers for every slice; it is not for {missing} of {len(frames)}"
            raise DataError(text, "missing_geometry")
    for frame in frames:
        axes_of(frame)


def _same_slices(paths: Sequence[Path], one: Frame, other: Frame) -> bool:
    """Whether two frames of different files hold the same pixels."""
    return one.file != other.file and same_pixels(_read(paths[one.file], True), _read(paths[other.file], True))


def _assemble(paths: Sequence[Path], found: Stack, modality: Modality) -> tuple[Raw, list[str]]:
    """Decode the slices of a volume and bring them onto its grid."""
    scales = [frame.scale for frame in found.frames]
    if found.places is None and found.shifts is None:
        stored = _stacked(_decoded(paths, found.frames), len(found.frames))
        if len(set(scales)) == 1:
            return make_raw(stored, found.affine, *scales[0]), []
        slopes, starts = np.array(scales).T[:, :, None, None] + 0.0  # no -0, which a float would keep
        return make_raw(stored, found.affine, slopes, starts), []
    scaled = (i * slope + start for i, (slope, start) in zip(_decoded(paths, found.frames), scales, strict=True))
    single = (values.astype(np.float32) for values in scaled)
    resampled, notes = regrid(_stacked(single, len(found.frames)), found, OUTSIDE_HU if modality == "CT" else 0.0)
    if modality == "CT":
        np.rint(resampled, out=resampled)  # HU are whole numbers, and whole numbers are stored small
    return make_raw(resampled, found.affine), notes


def _decoded(paths: Sequence[Path], frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
    """The slices in order, each read when it is asked for."""
    opened: tuple[int, Dataset] | None = None
    for frame in frames:
        if opened is None or opened[0] != frame.file:  # frames of one file are usually neighbours
            opened = frame.file, _read(paths[frame.file], pixels=True)
        image = decode(opened[1], frame)
        if image.shape != frame.shape:
            raise DataError(f"dicom frame must be {frame.shape}, not {image.shape}", "bad_dtype")
        yield image


def _stacked(slices: Iterable[NDArray[Any]], count: int) -> NDArray[Any]:
    """What `np.stack` gives, without all slices beside it."""
    out: NDArray[Any] | None = None
    for number, image in enumerate(slices):
        if out is None:
            out = np.empty((count, *image.shape), dtype=image.dtype)
        elif image.dtype != out.dtype:
            out = out.astype(np.result_type(out, image))
        out[number] = image
    assert out is not None  # a stack has two slices at least
    return out


def _planar(
    paths: Sequence[Path],
    headers: Sequence[Dataset],
    frames: Sequence[Frame],
    part: int,
    modality: Modality,
    notes: list[str],
) -> Loaded:
    """One frame as a 2D image."""
    frame = _choose([[each] for each in sorted(frames, key=lambda f: (f.instance, f.index, f.uid))], part)[0]
    pixels = decode(_read(paths[frame.file], pixels=True), frame)
    notes = list(notes)
    header = headers[frame.file]
    size = frame.size
    if size is None:
        size = _sizes(header.get("ImagerPixelSpacing"))
        if size is not None:
            notes.append("the pixel size is that at the detector, larger than in the patient")
    affine = np.eye(4)
    if size is not None:
        affine[1, 1], affine[2, 2] = size
    slope, intercept = frame.scale
    if pixels.ndim == 3:
        array, slope, intercept = pixels.transpose(2, 0, 1)[:, None], 1.0, 0.0
    elif str(header.get("PhotometricInterpretation") or "").strip() == "MONOCHROME1":
        notes.append("dark and bright were exchanged, as the file asks for")
        ends = int(pixels.max()) + int(pixels.min())
        array = np.empty((1, *pixels.shape), dtype=pixels.dtype)  # the range stays the same
        for row, turned in zip(pixels, array[0], strict=True):
            turned[...] = ends - row.astype(np.int64)
    else:
        array = pixels[None]
    raw = make_raw(np.ascontiguousarray(array), affine, slope, intercept)
    told = technique(header)
    return Loaded(raw, modality, part, len(frames), size is not None, tuple(notes), told)


def _sizes(value: Any) -> NDArray[np.float64] | None:
    try:
        found = np.asarray([float(part) for part in value], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return found if found.shape == (2,) and np.isfinite(found).all() and (found > 0).all() else None
