"""Text burned into pixels: rows of glyphs of one flat value; words that a recogniser reads, where one is installed."""

import io
import itertools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from data_prep.privacy.config import PrivacyConfig
from data_prep.values import grey_of
from voxscale.errors import DataError
from voxscale.kernel.filters import Planes
from voxscale.volume import Modality

SLICES = 24
"""Slices of a volume that are looked at, evenly spread."""
GLYPHS = 4
"""Fewest glyphs in a row that count as text: marks such as L, R or AP tell nobody's name."""
TALL = (5, 80)
"""Height of a glyph in pixels."""
ENOUGH = GLYPHS * TALL[0]
"""Fewest pixels of so many glyphs."""
MOST_INK = 0.2
"""Largest share of a slice that may hold the value of the ink."""
CONTRAST = 0.3
"""Least difference between ink and what is around it, over the range of the slice."""

WORD, SURE = 4, 80.0
"""Letters and confidence in percent from which a recognised word counts."""
OCR_SECONDS = 20.0
OCR_PIXELS = 4_000_000
"""A larger picture is made smaller before it is read."""


@dataclass(frozen=True, slots=True)
class TextFinding:
    """What was found.

    Attributes:
        found: Whether the pixels hold text.
        ocr: Whether the recogniser had its say.
        reason: In plain words; never the text itself.
    """

    found: bool
    ocr: bool
    reason: str


def find_text(values: Planes, modality: Modality, planar: bool, settings: PrivacyConfig) -> TextFinding:
    """Look for text in some slices of a volume, or in an image.

    Args:
        values: (z, y, x), or (3, 1, y, x) in colour.
        modality: Of the scan; volumes of CT and MR are never read by the recogniser, their slices hold no words
            unless glyphs stand in them.
        planar: Whether it is a 2D image.
        settings: Whether a recogniser is used.

    Raises:
        DataError: With reason `no_ocr` if the recogniser is required and missing.
    """
    del modality
    grey = grey_of(values)
    places = np.unique(np.linspace(0, len(grey) - 1, min(SLICES, len(grey))).round().astype(int))
    rows = max((_longest_row(grey[place]) for place in places), default=0)
    able = shutil.which("tesseract") is not None
    if settings.ocr == "require" and not able:
        raise DataError("privacy.ocr must be auto or off where no tesseract command is installed", "no_ocr")
    if rows >= GLYPHS:
        return TextFinding(True, False, f"{rows} glyphs in a row")
    if planar and able and settings.ocr != "off":
        letters = _read(grey[0])
        return TextFinding(letters > 0, True, f"{letters} letters were recognised" if letters else "no text")
    return TextFinding(False, False, "no text")


def _longest_row(plane: NDArray[np.float32]) -> int:
    """Most glyphs that stand side by side, drawn in the highest or in the lowest value of the slice."""
    finite = plane[np.isfinite(plane)]
    if finite.size == 0 or finite.min() == finite.max():
        return 0
    low, high = float(finite.min()), float(finite.max())
    del finite  # of a large image that is a third of all that is held here
    best = 0
    for ink, sign in ((high, 1.0), (low, -1.0)):
        drawn = plane == ink
        if ENOUGH <= np.count_nonzero(drawn) <= MOST_INK * drawn.size:
            best = max(best, _count(_glyphs(plane, drawn, sign, high - low)))
    return best


def _glyphs(plane: NDArray[np.float32], drawn: NDArray[np.bool_], sign: float, span: float) -> list[tuple[int, ...]]:
    """Boxes (top, bottom, left, right) of what could be letters."""
    found, _ = ndimage.label(drawn, structure=np.ones((3, 3)))
    places = [(number, box, *(part.stop - part.start for part in box)) for number, box in _boxes(found)]
    upright = [place for place in places if TALL[0] <= place[2] <= TALL[1] and place[3] <= 2 * place[2]]
    out: list[tuple[int, ...]] = []
    if len(upright) < GLYPHS:
        return out  # no row of them can be long enough
    for number, box, _, wide in upright:
        inside = found[box] == number
        if not 0.1 <= float(inside.mean()) <= 0.9 and wide > 3:
            continue
        edge = tuple(slice(max(0, part.start - 2), part.stop + 2) for part in box)
        around = plane[edge][found[edge] != number]
        ink = float(plane[box][inside][0])
        if around.size and sign * (ink - float(np.median(around))) >= CONTRAST * span:
            out.append((box[0].start, box[0].stop, box[1].start, box[1].stop))
    return out


def _boxes(found: NDArray[np.int32]) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Number and box of each labelled region."""
    yield from enumerate(ndimage.find_objects(found), 1)


def _count(boxes: list[tuple[int, ...]]) -> int:
    """Length of the longest row of boxes of one height, side by side."""
    best = 0
    for top, bottom, _, _ in boxes:
        tall = bottom - top
        row = sorted(
            (box[2], box[3])
            for box in boxes
            if abs((box[0] + box[1]) - (top + bottom)) <= tall and 0.5 <= (box[1] - box[0]) / tall <= 2
        )
        length = 1
        for (_, end), (start, _) in itertools.pairwise(row):
            length = length + 1 if 0 <= start - end <= 2 * tall else 1
            best = max(best, length)
    return best


def _read(plane: NDArray[np.float32]) -> int:
    """Letters in the words that the recogniser is sure of; their text is dropped at once."""
    ends = np.percentile(plane[np.isfinite(plane)], (0.1, 99.9)) if np.isfinite(plane).any() else (0.0, 1.0)
    grey = np.clip((np.nan_to_num(plane) - ends[0]) / max(float(ends[1] - ends[0]), 1e-9), 0, 1)
    image = Image.fromarray((grey * 255).astype(np.uint8))
    if image.width * image.height > OCR_PIXELS:
        image.thumbnail((2000, 2000))
    if min(image.size) < 32:
        return 0
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    try:
        done = subprocess.run(
            ["tesseract", "stdin", "stdout", "--psm", "11", "tsv"],
            input=stream.getvalue(),
            capture_output=True,
            timeout=OCR_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0
    letters = 0
    for line in done.stdout.decode(errors="replace").splitlines()[1:]:
        cells = line.split("\t")
        word = "".join(c for c in cells[-1] if c.isalnum())
        if len(cells) == 12 and len(word) >= WORD and float(cells[10]) >= SURE:
            letters += len(word)
    return letters
