import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import RulesConfig
from data_prep.rules import RULES, first_reason
from data_prep.rules.padding import padding_value
from data_prep.rules.scan import Scan
from voxscale.errors import ConfigError
from voxscale.io import load_file
from voxscale.io.storage import make_raw
from voxscale.volume import Volume

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
REAL = sorted(
    path
    for pattern in ("??_unlabelled/*.nii.gz", "labelled/*/*/*.nii.gz", "odd/orientation/*.nii.gz")
    for path in DATA.glob(pattern)
)
RULES_BY_NAME = dict(RULES)


def make_scan(values=None, spacing=(2.0, 2.0, 2.0), modality="CT", label=None, label_affine=None, classes=()):
    if values is None:
        values = np.full((12, 12, 12), -1000.0)
        values[3:9, 3:9, 3:9] = 40
    affine = np.diag([*spacing, 1.0])
    volume = Volume(np.asarray(values, dtype=np.float32), affine, modality)
    raw = None if label is None else make_raw(np.asarray(label), affine if label_affine is None else label_affine)
    return Scan(volume, volume.values(), raw, dict.fromkeys(classes, "x"))


def ball(*values):
    label = np.zeros((12, 12, 12), np.float32)
    label[3, 4, 5 : 5 + len(values)] = values
    return label


def edited(**places):
    scan = make_scan()
    values = scan.values.copy()
    values[0, 0, : len(places)] = list(places.values())
    return make_scan(values)


def shifted(mm):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[1, 3] = mm
    return affine


def stretched(factor):
    return np.diag([2.0, 2.0, 2.0 * factor, 1.0])


def blocks(*values):
    """Neighbouring blocks of 4 voxels along x, within background."""
    image = np.zeros((12, 12, 20), np.float32)
    for number, value in enumerate(values):
        image[2:10, 2:10, 2 + 4 * number : 6 + 4 * number] = value
    return image


def noisy(low, high):
    return np.random.default_rng(0).integers(low, high, (12, 12, 12))


GOOD = [
    make_scan(),
    make_scan(modality="MR"),
    make_scan(label=ball(1, 2)),
    make_scan(label=ball(1, 2), classes=(1, 2, 3)),
    make_scan(label=ball(255)),
    make_scan(label=ball(1), label_affine=shifted(0.009)),
    make_scan(label=ball(1), label_affine=stretched(1.0004)),  # 11 voxels of 2 mm: 0.0088 mm at the corner
    make_scan(np.random.default_rng(0).normal(size=(8, 8, 8)), spacing=(2, 2, 2), modality="MR"),
    make_scan(spacing=(20.0, 1.5, 1.5)),
    make_scan(noisy(0, 256), modality="MR"),
    make_scan(np.where(blocks(1) > 0, noisy(1, 8).repeat(2, 2)[..., :20], 0), modality="MR"),  # 8-bit, coarse steps
    make_scan(blocks(1, 2, 3) * 100, modality="MR"),  # up to 300
    make_scan(blocks(1, 2, 3) + 0.5, modality="MR"),
    make_scan(blocks(1, 2, 3) - 1, modality="CT"),
    make_scan(blocks(1, 2, 3, 4), modality="MR"),  # 12 of 15 pairs are equal
]

BAD = [
    ("nonfinite", edited(a=np.nan), "1 voxels"),
    ("nonfinite", edited(a=np.inf, b=-np.inf), "2 voxels"),
    ("constant", make_scan(np.full((12, 12, 12), 7.0)), "all voxels are 7"),
    ("extent", make_scan(np.arange(7 * 144).reshape(7, 12, 12), modality="MR"), "fewer than 8"),
    ("extent", make_scan(spacing=(1.3, 2.0, 2.0)), "shorter than 16 mm"),
    ("spacing", make_scan(spacing=(20.1, 2.0, 2.0)), "0.05 to 20"),
    ("spacing", make_scan(np.random.default_rng(0).normal(size=(400, 8, 8)), (0.04, 2.0, 2.0), "MR"), "0.05 to 20"),
    ("spacing", make_scan(np.random.default_rng(0).normal(size=(40, 8, 8)), (0.5, 2.0, 16.1), "MR"), "ratio"),
    ("hu_range", make_scan(np.linspace(1000, 2500, 1728).reshape(12, 12, 12)), "median"),
    ("hu_range", make_scan(np.linspace(-32768, 3000, 1728).reshape(12, 12, 12)), "0.5th percentile"),
    ("hu_range", make_scan(np.linspace(-1024, -900, 1728).reshape(12, 12, 12)), "99.5th percentile"),
    ("hu_range", make_scan(np.where(np.arange(1728) > 1700, 1e6, 0).reshape(12, 12, 12)), "99.5th percentile"),
    ("label_like", make_scan(blocks(1), modality="MR"), "100 % of neighbouring voxels"),
    ("label_like", make_scan(blocks(255), modality="CT"), "100 %"),
    ("label_like", make_scan(blocks(7, 7, 1, 1), modality="MR"), "93 %"),  # 14 of 15 pairs are equal
    ("label_like", make_scan(np.eye(12)[None].repeat(12, 0), modality="MR"), "100 %"),  # no neighbours at all
    ("label_grid", make_scan(label=ball(1)[:-1]), "label has shape"),
    ("label_grid", make_scan(label=ball(1), label_affine=shifted(0.011)), "0.011 mm off"),
    ("label_grid", make_scan(label=ball(1), label_affine=stretched(1.0006)), "off"),
    ("label_values", make_scan(label=ball(1, 1.5)), "not whole numbers"),
    ("label_values", make_scan(label=ball(1, np.nan)), "not whole numbers"),
    ("label_values", make_scan(label=ball(1, -1)), "-1 to 1"),
    ("label_values", make_scan(label=ball(1, 256)), "0 to 256"),
    ("label_values", make_scan(label=ball(1, 255), classes=(1, 2)), r"\[255\] that the task does not declare"),
    ("empty_label", make_scan(label=ball(0)), "background only"),
]


@pytest.mark.parametrize("scan", GOOD)
def test_good_scans_pass(scan):
    assert first_reason(scan, RulesConfig()) is None


@pytest.mark.parametrize(("rule", "scan", "text"), BAD)
def test_each_fault_is_found_by_its_rule(rule, scan, text):
    name, reason = first_reason(scan, RulesConfig())
    assert name == rule
    assert re.search(text, reason)


def test_hu_range_leaves_mr_alone():
    scan = make_scan(np.linspace(1000, 2500, 1728).reshape(12, 12, 12), modality="MR")
    assert RULES_BY_NAME["hu_range"](scan, RulesConfig()) is None


def test_thresholds_are_those_of_the_config():
    scan = make_scan(np.arange(7 * 144).reshape(7, 12, 12), spacing=(3, 2, 2), modality="MR")
    assert first_reason(scan, RulesConfig(min_slices=7)) is None
    assert first_reason(make_scan(blocks(1), modality="MR"), RulesConfig(label_like=1.01)) is None
    assert first_reason(make_scan(blocks(1, 2, 3, 4), modality="MR"), RulesConfig(label_like=0.8))[0] == "label_like"
    assert first_reason(make_scan(), RulesConfig(min_extent=25))[0] == "extent"
    assert first_reason(make_scan(), RulesConfig(spacing=(2.5, 20)))[0] == "spacing"
    assert first_reason(make_scan(label=ball(1), label_affine=shifted(0.5)), RulesConfig(grid_tolerance=1)) is None


def as_image(path):
    """A file's values as a CT or MR scan, whichever is likelier."""
    volume = load_file(path).volume(None)
    return Scan(volume, volume.values(), None, {})


@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_real_segmentations_are_told_from_real_scans(path):
    assert (RULES_BY_NAME["label_like"](as_image(path), RulesConfig()) is not None) == (path.parent.name == "labels")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"min_slices": 0}, "rules.min_slices"),
        ({"min_extent": -1}, "rules.min_extent"),
        ({"spacing": (2.0, 1.0)}, "rules.spacing"),
        ({"max_spacing_ratio": 0.5}, "rules.max_spacing_ratio"),
        ({"label_like": 0.0}, "rules.label_like"),
        ({"hu_high": (1.0, 0.0)}, "rules.hu_high"),
        ({"grid_tolerance": -0.1}, "rules.grid_tolerance"),
    ],
)
def test_bad_thresholds(values, text):
    with pytest.raises(ConfigError, match=text):
        RulesConfig(**values)


@pytest.mark.parametrize(("share", "rejected"), [(0.99, True), (0.9, False)])
def test_scans_that_are_nearly_all_padding(share, rejected):
    values = np.full((20, 20, 20), -2000.0)
    inside = np.arange(values.size).reshape(values.shape) % 100 < round(100 * (1 - share))
    inside[:, [0, 0, -1, -1], [0, -1, 0, -1]] = False
    values[inside] = 40 + np.arange(inside.sum())
    found = RULES_BY_NAME["padding"](make_scan(values), RulesConfig(max_padding=0.98))
    assert (found is not None) == rejected
    assert padding_value(values.astype(np.float32)) == -2000


def test_noise_and_colour_have_no_padding():
    noise = np.random.default_rng(0).normal(size=(8, 20, 20)).astype(np.float32)
    assert padding_value(noise) is None
    assert padding_value(np.zeros((3, 1, 20, 20), np.float32)) is None


def planar(shape, known=True):
    values = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    volume = Volume(values, np.eye(4), "OT")
    return Scan(volume, values, None, {}, known)


def test_2d_images_are_judged_by_their_sides_only():
    assert first_reason(planar((1, 28, 28)), RulesConfig()) is None
    assert first_reason(planar((3, 1, 28, 28), known=False), RulesConfig()) is None
    assert first_reason(planar((1, 12, 40)), RulesConfig())[0] == "extent"
    with pytest.raises(ConfigError, match=r"rules\.min_pixels"):
        RulesConfig(min_pixels=0)
    with pytest.raises(ConfigError, match=r"rules\.max_padding"):
        RulesConfig(max_padding=0)
