"""2D images: PNG, JPEG, TIFF and BMP, read with Pillow."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from voxscale.errors import DataError
from voxscale.io.loaded import Loaded
from voxscale.io.storage import make_raw

MOST_PIXELS = 150_000_000
"""Largest image that is read; a few bytes can announce a billion pixels."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "MPO")
ORIENTATION = 0x0112
"""EXIF's number of the field that says how a picture is turned."""
BAND = 1 << 18
"""Pixels that are taken out of a decoded image at a time, about."""
GREY = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def load_image2d(path: Path, part: int = 0) -> Loaded:
    """Read one page of an image file, as a volume of one slice.

    Row 0 is the first row of the picture and column 0 its left one; nothing is
    flipped, because a picture does not say how it lies in the patient. Its
    voxel size is not known and taken as 1 mm. No text of the file is kept.

    Args:
        path: The file.
        part: Page of a TIFF of several pages of one size.

    Returns:
        Voxels (1, row, column), or (3, 1, row, column) in colour.

    Raises:
        DataError: With reason `unreadable`, `truncated`, `too_large`, `bad_dtype` or `no_such_volume`.
    """
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of metadata that is not used
            with Image.open(path, formats=FORMATS) as image:
                parts = int(getattr(image, "n_frames", 1))
                if not 0 <= part < parts:
                    raise DataError(f"image.part must be 0 to {parts - 1}, not {part}", "no_such_volume")
                image.seek(part)
                if image.width * image.height > MOST_PIXELS:
                    pixels = image.width * image.height
                    raise DataError(f"image must have at most {MOST_PIXELS} pixels, not {pixels}", "too_large")
                array = _pixels(image, notes)
            del image
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise DataError(f"image must have at most {MOST_PIXELS} pixels", "too_large") from None
    except UnidentifiedImageError:
        raise DataError("image file must be a PNG, JPEG, TIFF or BMP", "unreadable") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        kind = "truncated" if cut else "unreadable"
        raise DataError(
            f"image file must be complete and decodable, not fail with {type(error).__name__}", kind
        ) from None
    raw = make_raw(array, np.eye(4))
    return Loaded(raw, part=part, parts=parts, spacing_known=False, notes=tuple(notes))


def _pixels(image: Image.Image, notes: list[str]) -> NDArray[Any]:
    """Numbers of a decoded image, (1, row, column) or (3, 1, row, column)."""
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:  # else it would be copied
        turned = ImageOps.exif_transpose(image)
        if turned.size != image.size or any(
            one.tobytes() != other.tobytes() for one, other in zip(_bands(turned), _bands(image), strict=True)
        ):
            notes.append("the image was turned upright as its file says")
        image = turned
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        notes.append("the image's transparency was dropped")
    if image.mode in ("LA", "La"):
        image = image.convert("L")
    elif image.mode not in GREY and image.mode != "RGB":
        image = image.convert("RGB")
    return _gathered(image, notes)


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """Some rows at a time: all at once are copied twice on their way to numpy."""
    step = max(1, BAND // image.width)
    return (image.crop((0, row, image.width, min(row + step, image.height))) for row in range(0, image.height, step))


def _gathered(image: Image.Image, notes: list[str]) -> NDArray[Any]:
    """The numbers of an image in grey or RGB; one channel if all three are equal."""
    channels = len(image.getbands())
    out, row, equal = np.empty(0), 0, True
    for band in _bands(image):
        array = np.asarray(band)
        if array.dtype.kind not in "biuf":
            raise DataError(f"image must hold numbers, not {array.dtype}", "bad_dtype")
        if not row:
            kind = np.uint8 if array.dtype == np.bool_ else array.dtype
            out = np.empty((channels, 1, image.height, image.width), dtype=kind)
        planes = array[None] if channels == 1 else array.transpose(2, 0, 1)
        out[:, 0, row : row + len(array)] = planes
        equal = equal and not any((plane != planes[0]).any() for plane in planes[1:])
        row += len(array)
    if channels == 1:
        return out[0]
    if equal:
        notes.append("the image is grey; one of its three equal channels is kept")
        return out[0].copy()
    return out
