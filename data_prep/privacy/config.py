"""Settings of the privacy gate."""

from typing import Literal, get_args

from voxscale.config import config, require

FacePolicy = Literal["block", "deface", "allow"]
TextPolicy = Literal["block", "allow"]
Ocr = Literal["auto", "off", "require"]


@config
class PrivacyConfig:
    """What happens to scans whose pixels could tell who it is.

    Attributes:
        gate: Whether pixels are checked at all; `pack` refuses scans that were not.
        face: A face that could be rebuilt: `block` rejects the scan, `deface` blanks the face, `allow` keeps it.
        text: Text burned into the pixels: `block` rejects the scan, `allow` keeps it.
        ocr: Whether a text recogniser (the `tesseract` command) confirms what looks like text: `auto` where it is
            installed, `off` never, `require` fails without it.
    """

    gate: bool = True
    face: FacePolicy = "deface"
    text: TextPolicy = "block"
    ocr: Ocr = "auto"

    def __post_init__(self) -> None:
        """Check choices; raises `ConfigError` with the dotted name."""
        for name, kind in (("face", FacePolicy), ("text", TextPolicy), ("ocr", Ocr)):
            value, choices = getattr(self, name), get_args(kind)
            require(value in choices, f"privacy.{name}", "known", value, choices)
