"""Names of structures without free text, and the class value of each name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_prep.files import read_csv
from data_prep.ids import keyed_hash
from voxscale.config import require
from voxscale.errors import DataError
from voxscale.io.structures import Structure

_ORGANS = """
adrenal_gland_left adrenal_gland_right aorta atrial_appendage_left autochthon_left autochthon_right
brachiocephalic_trunk brachiocephalic_vein_left brachiocephalic_vein_right brain clavicula_left clavicula_right colon
common_carotid_artery_left common_carotid_artery_right costal_cartilages duodenum esophagus femur_left femur_right
gallbladder gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left
gluteus_minimus_right heart hip_left hip_right humerus_left humerus_right iliac_artery_left iliac_artery_right
iliac_vena_left iliac_vena_right iliopsoas_left iliopsoas_right inferior_vena_cava kidney_cyst_left kidney_cyst_right
kidney_left kidney_right liver lung_lower_lobe_left lung_lower_lobe_right lung_middle_lobe_right lung_upper_lobe_left
lung_upper_lobe_right pancreas portal_vein_and_splenic_vein prostate pulmonary_vein sacrum scapula_left scapula_right
skull small_bowel spinal_cord spleen sternum stomach subclavian_artery_left subclavian_artery_right superior_vena_cava
thyroid_gland trachea urinary_bladder vertebrae_s1
kidney lung lungs lung_left lung_right bladder rectum bone_marrow brainstem chiasm cochlea_left cochlea_right eye_left
eye_right lens_left lens_right optic_nerve_left optic_nerve_right parotid_left parotid_right mandible larynx oral_cavity
submandibular_left submandibular_right breast_left breast_right uterus bowel bowel_bag penile_bulb seminal_vesicles
body external skin hippocampus tumor tumour lesion edema cyst nodule bone muscle fat vessel vessels
"""
_NUMBERED = [f"vertebrae_{part}{n}" for part, count in (("c", 7), ("t", 12), ("l", 5)) for n in range(1, count + 1)]
_NUMBERED += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]
KNOWN = frozenset(_ORGANS.split()) | frozenset(_NUMBERED)
"""Names that may be shown: the classes of TotalSegmentator (Wasserth et al. 2023), common organs at risk."""

TARGET = re.compile(r"(gtv|ctv|ptv|itv)(_?[npt])?(_?[1-9])?(_(mass|tumor|tumour|edema|node|primary|ct|mr|t1|t2|pet))*")
"""Radiotherapy targets with well-known endings (ICRU 83)."""

MOST_CLASSES = 255


def load_table(spec: str | None) -> dict[str, str]:
    """Read `IngestConfig.structures`; names as they are compared.

    Raises:
        ConfigError: If it is not a CSV file with a name and a class in every row.
    """
    if spec is None:
        return {}
    require(Path(spec).is_file(), "ingest.structures", "a CSV file that exists", Path(spec).name)
    rows = read_csv(Path(spec))
    ok = bool(rows) and all(row.get("name") and row.get("class") for row in rows)
    require(ok, "ingest.structures", "a CSV file in UTF-8 with a name and a class in every row", Path(spec).name)
    return {_plain(row["name"]): row["class"] for row in rows}


def class_name(structure: Structure, key: bytes, table: Mapping[str, str]) -> str:
    """The name under which a structure enters the store.

    In this order: the user's table, the public meaning of its code, a name of the vocabulary, else `structure-` and
    a keyed hash, equal for equal names, that only the holder of the key can trace back.
    """
    plain = _plain(structure.name)
    if plain in table:
        return table[plain]
    if structure.code is not None:
        return structure.code
    if plain in KNOWN or TARGET.fullmatch(plain):
        return plain
    return f"structure-{keyed_hash(key, plain)[:8]}"


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "_", name.strip().lower())


def assign_values(names: Iterable[str], known: Mapping[int, str], first: int = 1) -> dict[str, int]:
    """A class value for each name: that of the store, else the next free one in alphabetical order.

    Args:
        names: Of the structures.
        known: Classes of the store.
        first: Lowest value given; values below are left to label maps that do not declare theirs.

    Raises:
        DataError: With reason `too_many_classes`.
    """
    values = {name: value for value, name in known.items()}
    new = sorted(set(names) - values.keys())
    free = [value for value in range(first, MOST_CLASSES + 1) if value not in known]
    if len(new) > len(free):
        raise DataError(
            f"store must hold at most {MOST_CLASSES} classes, not {len(known) + len(new)}", "too_many_classes"
        )
    return values | dict(zip(new, free, strict=False))
