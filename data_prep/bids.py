"""BIDS: what file names of a brain imaging data set tell, and the label maps among its derivatives.

A name is `sub-01_ses-1_run-2_T1w.nii.gz`: entities, then a suffix. A label map
under `derivatives` repeats the entities of its image, adds some of its own
(`space`, `desc`, `label` and so on) and ends in `dseg` or `mask` (BIDS 1.10,
derivatives of imaging data).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import files_below, stem_of
from data_prep.source import Source
from voxscale.io import NIFTI_SUFFIXES, suffix_of
from voxscale.io.structures import Structure
from voxscale.volume import Modality

FILE = "dataset_description.json"
SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
MODALITY: dict[str, Modality] = {
    **dict.fromkeys(("T1w", "T2w", "FLAIR", "PDw", "T2star", "bold", "dwi", "inplaneT2", "angio", "SWI"), "MR"),
    **dict.fromkeys(("ct", "CT"), "CT"),
}
PREFERRED = ("T1w", "T2w", "FLAIR", "CT", "ct")
"""Which of several images with the same entities a label map without `orig` belongs to."""
OWN = ("space", "desc", "label", "res", "den", "hemi", "atlas", "seg", "orig")
"""Entities that a label map has for itself."""


@dataclass(frozen=True, slots=True)
class Name:
    """A file name taken apart.

    Attributes:
        entities: `key-value` pairs.
        suffix: What the name ends in.
    """

    entities: dict[str, str]
    suffix: str

    @property
    def image(self) -> frozenset[tuple[str, str]]:
        """The entities that name the image."""
        return frozenset((key, value) for key, value in self.entities.items() if key not in OWN)


def read_name(stem: str) -> Name:
    """Take a file name without its ending apart."""
    *pairs, suffix = stem.split("_")
    return Name(dict(pair.split("-", 1) for pair in pairs if "-" in pair), suffix)


def subject_of(place: str) -> str | None:
    """The subject that a path below the root names."""
    found = next((part for part in place.split("/") if SUBJECT.fullmatch(part)), None)
    return None if found is None else f"case:{found}"


def pair_labels(sources: Sequence[Source], derivatives: Path) -> tuple[list[Source], list[Path]]:
    """Give images the label maps that derivatives hold for them.

    A `dseg` is a label map; `mask` files with a `label` entity are one mask
    per class. Other masks (a brain mask, say) are no labels. Where several
    images have the entities of a label, it goes to the first of `PREFERRED`.

    Args:
        sources: The images of the data set.
        derivatives: Its folder `derivatives`.

    Returns:
        The images, with labels, and all files of the folder that are no label of any.
    """
    files = files_below(derivatives)
    wanted: dict[int, dict[str, list[Path]]] = {}
    rest: list[Path] = []
    names = [read_name(source.stem) for source in sources]
    spaces = {"", "orig", "individual", *(name.suffix for name in names)}
    places: dict[frozenset[tuple[str, str]], list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name.image, []).append(place)
    for path in files:
        name = read_name(stem_of(path))
        kind = {"dseg": "dseg", "mask": "mask" if "label" in name.entities else ""}.get(name.suffix, "")
        same_grid = name.entities.get("space", "") in spaces  # a template's space is another grid
        found = places.get(name.image, []) if kind and same_grid and suffix_of(path) in NIFTI_SUFFIXES else []
        if found:
            rank = {suffix: n for n, suffix in enumerate(PREFERRED)}
            best = min(found, key=lambda place: (rank.get(names[place].suffix, len(rank)), place))
            wanted.setdefault(best, {}).setdefault(kind, []).append(path)
        else:
            rest.append(path)
    out = list(sources)
    for place, kinds in wanted.items():
        if "dseg" in kinds:
            out[place] = replace(out[place], label=(kinds["dseg"][0],))
            rest += [*kinds["dseg"][1:], *kinds.get("mask", [])]  # one label map per image; others are counted
        else:
            masks = tuple(kinds["mask"])
            labels = [read_name(stem_of(path)).entities["label"] for path in masks]
            structures = tuple(Structure(number, None, label) for number, label in enumerate(labels, 1))
            out[place] = replace(out[place], label=masks, label_format="masks", label_names=structures)
    return out, sorted(rest)
