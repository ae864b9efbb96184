"""What a store's ledger tells, counted in one pass, and in plain words."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxscale.ledger import lines, parse_row

MOST_ROWS = 200
"""Rows of one rule that a page lists; more are counted only."""

ADVICE: dict[str, tuple[str, str]] = {
    "unreadable": ("The file is not what its name says, or cannot be opened.", "Export it again."),
    "truncated": ("The file ends before its data do.", "Copy or export it again."),
    "corrupt": ("The data do not match their checksum.", "Copy or export it again."),
    "undecodable": ("The compressed pixels cannot be decoded.", "Export it uncompressed."),
    "nonfinite": ("Some voxels are NaN or infinite.", "Look at how the file was made."),
    "constant": ("All voxels have one value.", "Nothing can be learnt from it."),
    "extent": ("Too few voxels or too small a field of view.", "Lower rules.min_slices or rules.min_extent."),
    "spacing": ("The voxel size is implausible.", "Check its unit, or widen rules.spacing."),
    "hu_range": ("The values cannot be Hounsfield units.", "Check slope and intercept, or declare the modality."),
    "padding": ("Nearly everything lies outside the scan.", "Raise rules.max_padding."),
    "label_like": ("It looks like a segmentation.", "Put it into labels/, or raise rules.label_like."),
    "single_slice": ("A CT or MR image of one slice.", "Set read.single_slice to accept it as a 2D image."),
    "uneven_slices": ("Slices are unevenly spaced.", "Set read.irregular to resample."),
    "sheared": ("The gantry was tilted, so the grid is sheared.", "Set read.irregular to resample."),
    "missing_slices": ("Slices are missing from the series.", "Send the series again."),
    "missing_geometry": ("Positions or pixel sizes are missing.", "Nothing may be guessed here; export it again."),
    "duplicate_slices": ("Slices share a place and nothing tells them apart.", "Split the series by hand."),
    "mixed_series": ("Files of different series were given as one.", "Check how they were exported."),
    "localizer": ("A scout image, not a scan.", "None needed."),
    "secondary_capture": ("A screenshot or a derived page.", "None needed; such pages often name the patient."),
    "projection": ("A projection or screenshot.", "None needed."),
    "not_an_image": ("A DICOM object without an image.", "None needed."),
    "bad_modality": ("Neither CT, MR nor a 2D image.", "None needed."),
    "burned_in": ("The header says that text is burned in.", "Clean the pixels at the source."),
    "burned_in_text": ("The pixels show text, which may name the patient.", "Clean them, or set privacy.text."),
    "face": ("A face could be rebuilt.", "Set privacy.face to deface."),
    "duplicate": ("Another input has the same bytes.", "None needed."),
    "no_label": ("The task has no label for it.", "Add the label, or set ingest.labels to ignore."),
    "no_image": ("A label whose image was not found.", "Add the image."),
    "extra_label": ("Its image has another label already.", "Choose one."),
    "extra_channel": ("A further channel of a case.", "None needed; the first one is used."),
    "no_subject": ("The subject setting does not know the file.", "Complete the table or pattern."),
    "label_grid": ("The label is not on the grid of its image.", "Resample the label."),
    "label_values": ("The label holds values that are no classes.", "Export it as whole numbers."),
    "empty_label": ("The label marks nothing.", "Check it, or leave the case out."),
    "bad_dtype": ("A number type that is no grey value.", "Export it as grey values."),
    "bad_affine": ("The orientation cannot be used.", "Repair the header."),
    "not_3d": ("Neither a volume nor a series of volumes.", "Split it."),
    "timeout": ("Reading took too long.", "Raise ingest.seconds, or look at the file."),
    "out_of_memory": ("Reading took too much memory.", "Raise ingest.gigabytes."),
    "reader_crashed": ("The reader died on it; only this file is lost.", "Look at the file."),
}
"""What a rule means, and what can be done."""


@dataclass(slots=True)
class Tally:
    """Counts of a ledger.

    Attributes:
        images: Inputs by status.
        rules: Rows by (status, rule).
        rows: The first rows of each rule, without their entries.
        labels: Labels without an image.
        parts: Further volumes by status.
        notes: How often each decision was noted.
        subjects: Keyed hashes of the subjects of accepted scans.
        bytes: Size of all accepted scans on disk.
    """

    images: Counter[str] = field(default_factory=Counter)
    rules: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    labels: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    subjects: set[str] = field(default_factory=set)
    bytes: int = 0


def read_rows(store: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ledger, one at a time."""
    yield from (parse_row(line, number) for number, line in enumerate(lines(store), 1))


def tally(store: Path) -> Tally:
    """Count a ledger in one pass, keeping at most `MOST_ROWS` rows of each rule."""
    out = Tally()
    for row in read_rows(store):
        match row["kind"]:
            case "image":
                out.images[row["status"]] += 1
            case "part":
                out.parts[row["status"]] += 1
            case _:
                out.labels += 1
        if row["status"] == "accepted":
            out.subjects.add(row["entry"]["subject"])
            out.bytes += row["entry"]["bytes"]
        for note in row.get("notes", []):
            out.notes["".join("n" if c.isdigit() else c for c in note).replace("nn", "n")] += 1
        if row["rule"]:
            out.rules[row["status"], row["rule"]] += 1
            kept = out.rows.setdefault(row["rule"], [])
            if len(kept) < MOST_ROWS:
                kept.append({name: value for name, value in row.items() if name != "entry"})
    return out
