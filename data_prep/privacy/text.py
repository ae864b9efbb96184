from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextFinding:
    found: bool
    ocr: bool
    reason: str


def find_text(values, modality, planar, settings):
    return TextFinding(False, False, "")
