"""Meanings of DICOM codes from the public dictionaries that come with pydicom, never a file's own words for them."""

import functools
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

RETIRED = {"99SDM": "SRT", "SNM3": "SRT"}
"""Older designators of the same codes (DICOM PS3.16, section 8.1)."""

SIDES = {"7771000": "left", "24028007": "right", "51440002": "both"}
"""Laterality (DICOM context group 244), SNOMED CT codes."""


@functools.lru_cache(maxsize=1024)
def public_meaning(value: str, scheme: str) -> str | None:
    """Meaning of a code in lower case, or None if no public dictionary has it.

    Args:
        value: CodeValue.
        scheme: CodingSchemeDesignator; SNOMED-RT codes (SRT) are looked up as the SNOMED CT codes they became.
    """
    scheme = RETIRED.get(scheme, scheme)
    wanted = Code(value, scheme, "")
    for known in ("SCT",) if scheme == "SRT" else (scheme,):
        for code, meaning in _meanings(known).items():
            if code == wanted:
                return meaning
    return None


@functools.lru_cache(maxsize=32)
def _meanings(scheme: str) -> dict[Code, str]:
    """Meaning of every code of a dictionary: its shortest name, formal ones such as "x (body structure)" last."""
    if scheme not in codes.schemes():
        return {}
    collection: Any = getattr(codes, scheme)
    names: dict[Code, list[str]] = {}
    for keyword in collection.dir():
        try:
            found: Code = getattr(collection, keyword)
        except RuntimeError:  # a keyword of several codes; which one is meant cannot be told
            continue
        names.setdefault(Code(found.value, found.scheme_designator, ""), []).append(found.meaning)
    best = {
        code: min(several, key=lambda name: (name.endswith(")"), len(name), name)) for code, several in names.items()
    }
    return {code: (name.rpartition(" (")[0] if name.endswith(")") else name).lower() for code, name in best.items()}


def coded_name(kinds: Iterable[Dataset] | None) -> str | None:
    """Public meaning of a code sequence, followed by its side ("kidney left") where a modifier states one.

    Args:
        kinds: Items of the sequence; the first counts.
    """
    for kind in kinds or ():
        meaning = public_meaning(*_code(kind))
        if meaning is None:
            return None
        modifiers: Any = kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()
        sides = [side for value, side in SIDES.items() for each in modifiers if _same(_code(each), value)]
        return " ".join([meaning, *sides[:1]])
    return None


def _code(item: Dataset) -> tuple[str, str]:
    return str(item.get("CodeValue") or ""), str(item.get("CodingSchemeDesignator") or "")


def _same(code: tuple[str, str], value: str) -> bool:
    """Whether a code is the given SNOMED CT code."""
    found, scheme = code
    return Code(found, RETIRED.get(scheme, scheme), "") == Code(value, "SCT", "")
