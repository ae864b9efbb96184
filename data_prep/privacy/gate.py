"""The gate that every scan passes before a voxel of it is stored."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.privacy.config import PrivacyConfig
from data_prep.privacy.face import blank, deface, find_face
from data_prep.privacy.text import find_text
from data_prep.values import Values, ends
from voxscale.entry import Privacy
from voxscale.errors import DataError
from voxscale.kernel.filters import Planes
from voxscale.volume import Volume

AIR_HU = -1000.0


@dataclass(frozen=True, slots=True)
class Passed:
    """A scan that may be stored.

    Attributes:
        volume: The scan, its face blanked if it was found.
        values: Its values.
        privacy: The verdicts.
        removed: (z, y, x), true where a voxel was blanked; None if none was.
        notes: What was done, in plain words.
    """

    volume: Volume
    values: Planes
    privacy: Privacy
    removed: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()


def pass_gate(volume: Volume, values: Planes, settings: PrivacyConfig, in_place: bool = False) -> Passed:
    """Check the pixels of one scan, and blank its face if that is the setting.

    Args:
        volume: The scan.
        values: (z, y, x), or (3, 1, y, x) for colour, its values.
        settings: What to do with what is found.
        in_place: Whether a face may be blanked in the given volume itself, to save memory.

    Raises:
        DataError: With reason `burned_in_text` or `face`.
    """
    if not settings.gate:
        return Passed(volume, values, Privacy())
    text = find_text(values, volume.modality, volume.shape[0] == 1, settings)
    if text.found and settings.text == "block":
        raise DataError(f"pixels must not hold text, which may name the patient: {text.reason}", "burned_in_text")
    privacy = Privacy(face="none", text="allowed" if text.found else "none", ocr=text.ocr)
    notes = (f"text in the pixels is kept: {text.reason}",) if text.found else ()
    if volume.shape[0] == 1:
        return Passed(volume, values, privacy, notes=notes)
    face = find_face(values, volume.spacing, volume.affine, volume.modality)
    if not face.face:
        return Passed(volume, values, privacy, notes=notes)
    if settings.face == "block" or (settings.face == "deface" and face.mask is None):
        raise DataError(f"scan must not show a face: {face.reason}", "face")
    if face.mask is None or settings.face == "allow":
        return Passed(
            volume, values, replace(privacy, face="allowed"), notes=(*notes, f"a face is kept: {face.reason}")
        )
    return _defaced(volume, ends(values)[0], face.mask, privacy, notes, in_place)


def _defaced(
    volume: Volume,
    low: float,
    mask: NDArray[np.bool_],
    privacy: Privacy,
    notes: tuple[str, ...],
    in_place: bool,
) -> Passed:
    """The scan, whose lowest value is given, with air in the place of its face."""
    fill = max(low, AIR_HU) if volume.modality == "CT" else low
    stored = round((fill - volume.intercept) / volume.slope)
    change = blank if in_place and volume.voxels.flags.writeable else deface
    cleared = replace(volume, voxels=change(volume.voxels, mask, stored))
    removed = int(mask.sum())
    note = f"the face was blanked: {removed} voxels, {100 * removed / mask.size:.1f} % of the scan"
    return Passed(cleared, Values(cleared), replace(privacy, face="defaced", removed=removed), mask, (*notes, note))
