from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaceFinding:
    head: bool
    face: bool
    mask: object
    reason: str


def find_face(values, spacing, affine, modality):
    return FaceFinding(False, False, None, "")


def deface(v, mask, fill):
    out = v.copy()
    out[mask] = fill
    return out
