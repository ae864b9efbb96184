"""Label files and the class names that stand beside them."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from data_prep.files import read_csv
from data_prep.values import pieces
from voxscale.errors import DataError
from voxscale.io.storage import Raw
from voxscale.volume import MODALITIES, LabelMap, Modality

log = logging.getLogger("voxscale")


def to_label_map(raw: Raw) -> LabelMap:
    """A label whose values passed the rules, as uint8."""
    if raw.voxels.dtype == np.uint8 and (raw.slope, raw.intercept) == (1, 0):
        return LabelMap(raw.voxels, raw.affine)
    classes = np.empty(raw.voxels.shape, dtype=np.uint8)
    for where in pieces(raw.voxels.shape):
        classes[where] = np.rint(replace(raw, voxels=raw.voxels[where]).values())
    return LabelMap(classes, raw.affine)


def read_class_table(table: Path) -> tuple[dict[str, int], dict[int, str]]:
    """Class of each image by its file name, and the names of the classes, from a CSV file.

    Columns are `file`, `label` (a whole number) and, if there is one, `label_name`.

    Raises:
        DataError: With reason `bad_dataset` if a row lacks one of the first two, or `class_conflict`.
    """
    rows = read_csv(table)
    if not rows or any(not (row.get("file") and str(row.get("label", "")).isdecimal()) for row in rows):
        raise DataError("labels.csv must be UTF-8 with a file and a whole number as label in every row", "bad_dataset")
    names: dict[int, str] = {}
    for row in rows:
        value, name = int(row["label"]), row.get("label_name") or row["label"]
        if names.setdefault(value, name) != name:
            raise DataError(f"image class {value} must have one name in labels.csv", "class_conflict")
    return {row["file"]: int(row["label"]) for row in rows}, names


def read_task(folder: Path) -> tuple[dict[int, str], Modality | None]:
    """Class names and modality of a task, from its `dataset.json` if there is one.

    Both ways round are understood: `{"1": "liver"}` and nnU-Net's
    `{"liver": 1}`; a region such as `{"tumour": [1, 2]}` declares its values
    without naming them.

    Returns:
        Names of the label values, background left out (empty if none are
        declared), and the modality if it says CT or MR for all scans.

    Raises:
        DataError: With reason `bad_dataset` if the file is not JSON, a label value is not 0 to 255, or labels or
            modality are of another form.
    """
    found = _read(folder)
    if found is None:
        return {}, None
    labels = found.get("labels")
    if not isinstance(labels, dict):
        log.warning("dataset.json declares no classes; any label value from 1 to 255 is taken")
        labels = {}
    return _classes(labels), _modality(found.get("modality"))


def read_modality(folder: Path) -> Modality | None:
    """Modality that a folder's `dataset.json` declares for all scans; None, with a warning, if the file is damaged."""
    try:
        found = _read(folder)
        return None if found is None else _modality(found.get("modality"))
    except DataError as error:
        log.warning("%s; it is not used", error)
        return None


def _read(folder: Path) -> dict[str, Any] | None:
    """The object in `dataset.json`, or None if there is no such file."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        raise DataError("dataset.json must be a readable JSON file", "bad_dataset") from None
    if not isinstance(found, dict):
        raise DataError("dataset.json must hold one JSON object", "bad_dataset")
    return found


def _classes(labels: Mapping[str, Any]) -> dict[int, str]:
    """Class names by value, from either way round."""
    names: dict[int, str] = {}
    regions: set[int] = set()
    for left, right in labels.items():
        if isinstance(right, list) and all(_is_whole(value) for value in right):
            regions |= set(right)
        elif _is_whole(right):
            names[right] = left
        elif isinstance(right, str) and left.isdecimal():
            names[int(left)] = right
        else:
            raise DataError(
                f"dataset.json labels must pair each name with a whole number or a list of them, not {left!r} with "
                f"{json.dumps(right)}",
                "bad_dataset",
            )
    names = {value: str(value) for value in regions} | names
    names.pop(0, None)
    if "ignore" in names.values():  # nnU-Net leaves such voxels out of the loss; trained as a class they would mislead
        raise DataError(
            "dataset.json labels must be classes, not nnU-Net's `ignore`; "
            "give those voxels a class, or leave the cases out",
            "bad_dataset",
        )
    if any(not 1 <= value <= 255 for value in names):
        raise DataError(f"dataset.json label values must be 0 to 255, not {sorted(names)}", "bad_dataset")
    return dict(sorted(names.items()))


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; Python counts `true` as one."""
    return isinstance(value, int) and not isinstance(value, bool)


def _modality(declared: object) -> Modality | None:
    """CT or MR if that is what is declared, as a word or for each channel."""
    values = list(declared.values()) if isinstance(declared, dict) else [declared]
    if declared is None or not values:
        return None
    words: set[str] = set()
    for value in values:
        if not isinstance(value, str):
            shown = json.dumps(value)
            raise DataError(f"dataset.json modality must be a word, or one per channel, not {shown}", "bad_dataset")
        words.add(value.upper())
    return next((known for known in MODALITIES if words <= {known, f"{known}I"}), None)
