"""Scans of all kinds, made for measuring what their reader needs: labels, DICOM in several codings, 2D images.

As a script: a table of what readers of these kinds need, `python tests/bench/ingest_kinds.py [NAME ...]`.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from ingest_memory import limit, limit_2d, made, watched
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import UID, EnhancedCTImageStorage, JPEG2000Lossless, JPEGLSLossless, RLELossless

from data_prep.phantom_formats import dicom_tags
from voxscale.io.isolate import run_isolated

Three = tuple[int, int, int]
Made = tuple[dict[str, Any], int]
"""Fields of a `Job`, and bytes of image and label as decoded."""


def body(shape: tuple[int, ...], low: int, high: int, width: float, dtype: str) -> NDArray[Any]:
    """A cylinder with noise, (z, y, x); made slice by slice."""
    noise, (y, x) = np.random.default_rng(0), shape[1:]
    inside = (np.linspace(-1, 1, y)[:, None] ** 2 + np.linspace(-1, 1, x) ** 2) < 0.6
    out = np.empty(shape, dtype=dtype)
    for plane in out:
        drawn = noise.standard_normal((y, x), dtype=np.float32) * width + np.where(inside, high, low)
        plane[...] = drawn if dtype.startswith("float") else np.clip(drawn, 0, np.iinfo(dtype).max)
    return out


def labelled(folder: Path, shape: Three, image: str, label: str) -> Made:
    """A NIfTI scan with a label of 20 classes in a file of its own."""
    made(folder / "scan.nii", shape, image, (1.5, 1.0, 1.0))
    nib.save(nib.Nifti1Image(_classes(shape).astype(label).T, np.diag([1.0, 1.0, 1.5, 1.0])), folder / "label.nii")
    raw = int(np.prod(shape)) * (np.dtype(image).itemsize + np.dtype(label).itemsize)
    return {"files": [str(folder / "scan.nii")], "label": [str(folder / "label.nii")]}, raw


def masks(folder: Path, shape: Three, image: str, count: int) -> Made:
    """A NIfTI scan with a mask of 8 bits for each of some classes; one of them counts as the label's bytes."""
    case, raw = labelled(folder, shape, image, "uint8")
    classes, affine = _classes(shape), np.diag([1.0, 1.0, 1.5, 1.0])
    case["label"] = [str(folder / f"mask_{number}.nii.gz") for number in range(1, count + 1)]
    for number, path in enumerate(case["label"], 1):
        nib.save(nib.Nifti1Image((classes == number).astype(np.uint8).T, affine), path)
    return case | {"label_format": "masks", "label_values": {n: n for n in range(1, count + 1)}}, raw


def _classes(shape: Three) -> NDArray[np.uint8]:
    z, y, x = (np.linspace(0, 1, n) for n in shape)
    inside = (y[:, None] - 0.5) ** 2 + (x - 0.5) ** 2 < 0.1
    return np.stack([(1 + int(19 * place) + np.zeros(shape[1:], dtype=np.uint8)) * inside for place in z])


def series(folder: Path, shape: Three, coding: UID | None) -> Made:
    """A CT series of one file for each slice, 12 of 16 bits."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.dcm" for number in range(shape[0])]
    for number, (path, plane) in enumerate(zip(paths, body(shape, 24, 1064, 20, "uint16"), strict=True)):
        slice_ = _sized(dicom_tags(0, number), plane)
        slice_.ImagePositionPatient = [0, 0, number * 2.0]
        _save(slice_, path, plane, coding)
    return {"files": [str(path) for path in paths], "dicom": True}, 2 * int(np.prod(shape))


def enhanced(folder: Path, shape: Three, coding: UID | None) -> Made:
    """An enhanced CT: all slices in one file."""
    folder.mkdir(exist_ok=True)
    voxels = body(shape, 24, 1064, 20, "uint16")
    item = _sized(dicom_tags(0, 0), voxels[0])
    item.SOPClassUID, item.NumberOfFrames = EnhancedCTImageStorage, shape[0]
    item.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    groups: list[pydicom.Dataset] = []
    for number in range(shape[0]):
        place, group = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, number * 2.0]
        group.PlanePositionSequence = [place]
        groups.append(group)
    item.PerFrameFunctionalGroupsSequence = groups
    _save(item, folder / "enhanced.dcm", voxels, coding)
    return {"files": [str(folder / "enhanced.dcm")], "dicom": True}, 2 * int(np.prod(shape))


def _sized(item: pydicom.Dataset, plane: NDArray[Any]) -> pydicom.Dataset:
    item.Rows, item.Columns = plane.shape
    item.PixelSpacing, item.SliceThickness = [0.8, 0.8], 2.0
    return item


def _save(item: pydicom.Dataset, path: Path, pixels: NDArray[Any], coding: UID | None) -> None:
    item.PixelData = pixels.tobytes()
    item["PixelData"].VR = "OW"
    if coding is not None:
        item.compress(coding, encoding_plugin="gdcm" if coding == RLELossless else "")
    item.save_as(path, enforce_file_format=True)


def image(folder: Path, shape: tuple[int, ...], dtype: str, ending: str) -> Made:
    """A 2D image, (row, column) or (row, column, 3)."""
    peak = 60000 if dtype == "uint16" else 230
    planes = [body((1, *shape[:2]), peak // 10, peak // (3 + n), peak / 30, dtype)[0] for n in range(len(shape) - 1)]
    pixels = planes[0] if len(shape) == 2 else np.stack([*planes, planes[0]], axis=2)
    Image.fromarray(pixels).save(folder / f"image.{ending}")
    return {"files": [str(folder / f"image.{ending}")]}, pixels.nbytes


def masked_image(folder: Path, shape: tuple[int, int]) -> Made:
    """A grey PNG of 8 bits with a mask in black and white."""
    case, raw = image(folder, shape, "uint8", "png")
    mask = np.zeros(shape, dtype=np.uint8)
    mask[shape[0] // 4 : shape[0] // 2, shape[1] // 4 : shape[1] // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return case | {"label": [str(folder / "mask.png")]}, 2 * raw


def plain(folder: Path, shape: Three, dtype: str, spacing: tuple[float, float, float]) -> Made:
    """A NIfTI scan without label."""
    made(folder / "scan.nii", shape, dtype, spacing)
    return {"files": [str(folder / "scan.nii")]}, int(np.prod(shape)) * np.dtype(dtype).itemsize


KINDS: Mapping[str, tuple[Callable[..., Made], tuple[Any, ...], bool]] = {
    "wide planes, 240^3 uint8, 6 mm": (plain, ((240, 240, 240), "uint8", (6.0, 6.0, 6.0)), False),
    "wide planes, 24 x 300 x 300 uint8, 4 mm": (plain, ((24, 300, 300), "uint8", (4.0, 4.0, 4.0)), False),
    "wide planes, 30 x 1024 x 1024 uint8, 1 mm": (plain, ((30, 1024, 1024), "uint8", (1.0, 1.0, 1.0)), False),
    "label uint8, image int16": (labelled, ((80, 256, 256), "int16", "uint8"), False),
    "label uint8, image uint8": (labelled, ((160, 256, 256), "uint8", "uint8"), False),
    "label int16, image int16": (labelled, ((80, 256, 256), "int16", "int16"), False),
    "label float32, image int16": (labelled, ((80, 256, 256), "int16", "float32"), False),
    "20 masks, image int16": (masks, ((80, 256, 256), "int16", 20), False),
    "CT series": (series, ((80, 384, 384), None), False),
    "CT series, JPEG 2000": (series, ((80, 384, 384), JPEG2000Lossless), False),
    "CT series, JPEG-LS": (series, ((80, 384, 384), JPEGLSLossless), False),
    "CT series, RLE": (series, ((80, 384, 384), RLELossless), False),
    "enhanced CT": (enhanced, ((80, 384, 384), None), False),
    "enhanced CT, JPEG 2000": (enhanced, ((80, 384, 384), JPEG2000Lossless), False),
    "enhanced CT, RLE": (enhanced, ((80, 384, 384), RLELossless), False),
    "PNG, grey, 8 bits": (image, ((4000, 4000), "uint8", "png"), False),
    "PNG, colour": (image, ((3000, 3000, 3), "uint8", "png"), False),
    "TIFF, 16 bits": (image, ((5000, 4000), "uint16", "tif"), False),
    "TIFF, float32": (image, ((4000, 3000), "float32", "tif"), True),
    "PNG with a mask": (masked_image, ((4000, 4000),), False),
}
"""How to make each kind: a function, what it is given after the folder (its shape first), and if numbers are wide."""


def measure(name: str, folder: Path, shape: tuple[int, ...] | None = None) -> tuple[float, float, float]:
    """Of a kind, perhaps in another shape.

    Returns:
        MB of its image and label, of its reader's memory beyond an idle one's, and of what is allowed.
    """
    make, given, wide = KINDS[name]
    given = (shape or given[0], *given[1:])
    least = tuple(min(n, 64) for n in given[0])
    (folder / "small").mkdir()
    (folder / "large").mkdir()
    small, _ = make(folder / "small", least, *given[1:])
    case, raw = make(folder / "large", *given)
    told = run_isolated(watched, (case, small, str(folder / "root")), 300.0, 8.0)
    planar, size = make in (image, masked_image), given[0]
    most = limit_2d(size[0] * size[1], len(size) == 3) if planar else limit(raw, wide)
    return raw / 1e6, (told["peak"] - told["idle"]) / 1e6, most / 1e6


def main() -> None:
    """Measure and print."""
    for name in [one for one in KINDS if not sys.argv[1:] or any(part in one for part in sys.argv[1:])]:
        with tempfile.TemporaryDirectory() as folder:
            raw, peak, most = measure(name, Path(folder))
        fits = "" if peak <= most else "  TOO MUCH"
        print(
            f"{name:44s} raw {raw:6.1f}  peak {peak:7.1f}  {peak / raw:5.2f} raw  allowed {most:6.1f}{fits}", flush=True
        )


if __name__ == "__main__":
    main()
