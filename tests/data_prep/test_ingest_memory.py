"""Memory of a reader process against the formula of docs/design.md, measured from inside it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # readers get this list too
from ingest_kinds import measure
from ingest_memory import cut_of, file_case, limit, made, watched

from voxscale.io.isolate import run_isolated
from voxscale.kernel.filters import load

SCANS = [
    ((100, 256, 256), "int16", (1.0, 0.8, 0.8)),
    ((100, 360, 360), "uint8", (1.0, 0.7, 0.7)),
    ((128, 192, 192), "uint8", (2.0, 2.0, 2.0)),
    ((60, 256, 256), "float32", (1.0, 0.8, 0.8)),
    ((30, 512, 512), "int16", (5.0, 0.7, 0.7)),
    ((60, 128, 128), "int16", (4.0, 4.0, 4.0)),
    ((400, 128, 128), "int16", (4.0, 4.0, 4.0)),
    ((400, 128, 128), "uint8", (4.0, 4.0, 4.0)),
    ((200, 64, 64), "int16", (8.0, 8.0, 8.0)),
    ((63, 91, 91), "uint8", (4.0, 4.0, 4.0)),
    ((32, 64, 64), "int16", (3.0, 3.0, 3.0)),
]
"""Shape, number type and spacing; a grid of 4 x 2 x 2 mm has 4 to 32 times the voxels of the coarse ones."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.skipif(load() is None, reason="needs g++")
def test_a_reader_needs_no_more_than_is_stated(tmp_path):
    found = []
    for number, (shape, dtype, spacing) in enumerate(SCANS):
        file = tmp_path / f"{number}.nii"
        made(file, shape, dtype, spacing)
        raw = file.stat().st_size - 352
        cut = cut_of(file, tmp_path / f"{number}_small.nii")
        told = run_isolated(watched, (file_case(file), file_case(cut), str(tmp_path / str(number))), 120.0, 4.0)
        found.append(
            (
                dtype,
                spacing,
                raw / 1e6,
                (told["peak"] - told["idle"]) / 1e6,
                limit(raw, dtype == "float32") / 1e6,
            )
        )
    print(*found, sep="\n")
    assert all(raw < peak < most for _, _, raw, peak, most in found), found
    assert all(peak < 4 * raw for _, _, raw, peak, _ in found if raw > 12), found


KINDS = {
    "label float32, image int16": (60, 192, 192),
    "20 masks, image int16": (60, 192, 192),
    "CT series, JPEG-LS": (60, 256, 256),
    "enhanced CT, RLE": (60, 256, 256),
    "PNG, grey, 8 bits": (1500, 1600),
    "PNG, colour": (1200, 1000, 3),
    "TIFF, 16 bits": (1500, 1600),
    "PNG with a mask": (1500, 1600),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.skipif(load() is None, reason="needs g++")
@pytest.mark.parametrize("kind", KINDS)
def test_nor_for_labels_dicom_and_images_of_two_dimensions(tmp_path, kind):
    raw, peak, most = measure(kind, tmp_path, KINDS[kind])
    assert raw < peak < most
