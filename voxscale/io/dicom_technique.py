"""The few header values that may leave a DICOM file: plausible numbers, and words of closed lists."""

import math
from typing import Any

from pydicom.dataset import Dataset

from voxscale.io.loaded import Technique

MAKERS = (
    "siemens",
    "ge medical",
    "philips",
    "toshiba",
    "canon",
    "hitachi",
    "fujifilm",
    "shimadzu",
    "hologic",
    "agfa",
    "carestream",
    "samsung",
    "united imaging",
    "uih",
    "neusoft",
    "bruker",
    "esaote",
    "varian",
    "elekta",
)
"""How the names of known makers begin."""

_IMAGE_TYPES = """
ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER MPR M P R I MAGNITUDE PHASE ADC DIFFUSION WATER FAT MOSAIC VOLUME
REFORMATTED SUBTRACTION PERFUSION RESAMPLED MIXED NORM DIS2D DIS3D FFE SE
"""
IMAGE_TYPES = frozenset(_IMAGE_TYPES.split())

_BODY_PARTS = """
abdomen abdomenpelvis adrenal ankle aorta arm axilla back bladder brain breast bronchus buttock calcaneus calf
carotid cerebellum cervix chest chestabdomen chestabdpelvis clavicle coccyx colon cornea coronaryartery cspine
ctspine duodenum ear elbow esophagus extremity eye eyelid face femur finger foot gallbladder hand head
headneck heart hip humerus ileum ilium iac jaw jejunum kidney knee larynx leg liver lspine lsspine lung
mandible maxilla mediastinum mouth neck neckchest neckchestabdomen neckchestabdpelv nose orbit ovary pancreas
parotid patella pelvis penis pharynx prostate radius radiusulna rectum rib scalp scapula sclera scrotum
shoulder skull spine spleen ssspine sternum stomach submandibular testis thigh thumb thymus thyroid tibia
tibiafibula tlspine tmjoint toe tongue trachea tspine ulna ureter urethra uterus vagina vulva wholebody wrist
zygoma
"""
BODY_PARTS = frozenset(_BODY_PARTS.split())
"""Defined terms of BodyPartExamined (DICOM PS3.16, Annex L, the older three-letter-code column), in lower case."""


def technique(item: Dataset) -> Technique:
    """Take what is on the lists from a header; anything else is left behind."""
    agent = item.get("ContrastBolusAgent")
    return Technique(
        body_part=_word(item.get("BodyPartExamined")),
        manufacturer=_maker(item.get("Manufacturer")),
        image_type=tuple(word for word in image_type(item) if word in IMAGE_TYPES),
        contrast=None if "ContrastBolusAgent" not in item else bool(str(agent or "").strip()),
        kvp=_number(item, "KVP", 10, 500),
        field_strength=_number(item, "MagneticFieldStrength", 0.01, 30),
        echo_time=_number(item, "EchoTime", 0, 10_000),
        repetition_time=_number(item, "RepetitionTime", 0, 100_000),
        flip_angle=_number(item, "FlipAngle", 0, 360),
        slice_thickness=_number(item, "SliceThickness", 0.01, 100),
        gantry_tilt=_number(item, "GantryDetectorTilt", -90, 90),
    )


def image_type(item: Dataset) -> tuple[str, ...]:
    """Words of ImageType in upper case; empty where it is missing or damaged."""
    found: Any = item.get("ImageType")
    parts = [found] if isinstance(found, str) else (found or [])
    return tuple(str(part).strip().upper() for part in parts)


def _word(value: Any) -> str | None:
    plain = "".join(c for c in str(value or "").lower() if c.isalpha())
    return plain if plain in BODY_PARTS else None


def _maker(value: Any) -> str | None:
    plain = str(value or "").lower()
    return next((maker for maker in MAKERS if plain.startswith(maker)), None)


def _number(item: Dataset, tag: str, low: float, high: float) -> float | None:
    """A plausible number to three decimals; a longer one could be a code for something else."""
    try:
        value = float(item[tag].value)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return round(value, 3) if math.isfinite(value) and low <= value <= high else None
