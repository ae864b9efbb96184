import pytest

from data_prep.structures import KNOWN, assign_values, class_name, load_table
from voxscale.errors import ConfigError, DataError
from voxscale.io.structures import Structure

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Liver", "liver"),
        ("Kidney-Left", "kidney_left"),
        ("GTV_Mass", "gtv_mass"),
        ("CTV1", "ctv1"),
        ("vertebrae_L5", "vertebrae_l5"),
    ],
)
def test_known_names(name, expected):
    assert class_name(Structure(1, None, name), KEY, {}) == expected


def test_unknown_names_are_hidden_but_equal_for_equal_names():
    first = class_name(Structure(1, None, "DOE^CANARY liver"), KEY, {})
    assert first.startswith("structure-")
    assert "CANARY" not in first
    assert class_name(Structure(9, None, "doe^canary  LIVER"), KEY, {}) == first
    assert class_name(Structure(9, None, "DOE^CANARY liver"), b"x" * 32, {}) != first
    assert class_name(Structure(9, None, "GTV_CANARY"), KEY, {}).startswith("structure-")


def test_a_code_and_a_table_come_before_the_vocabulary(tmp_path):
    assert class_name(Structure(1, "liver", "CANARY"), KEY, {}) == "liver"
    table = tmp_path / "names.csv"
    table.write_text("name,class\nMy Roi,tumour\n")
    assert class_name(Structure(1, "liver", "my_roi"), KEY, load_table(str(table))) == "tumour"
    with pytest.raises(ConfigError, match=r"ingest\.structures"):
        load_table(str(tmp_path / "none.csv"))


def test_the_vocabulary_holds_the_classes_of_totalsegmentator():
    assert sum(name.startswith("vertebrae_") for name in KNOWN) == 25
    assert sum(name.startswith("rib_") for name in KNOWN) == 24
    assert {"adrenal_gland_left", "urinary_bladder", "pulmonary_vein"} <= KNOWN


def test_values_stay_and_new_ones_fill_the_gaps():
    assert assign_values({"b", "a", "spleen"}, {1: "spleen", 3: "x"}) == {"spleen": 1, "x": 3, "a": 2, "b": 4}
    assert assign_values({"a"}, {}, 128) == {"a": 128}
    with pytest.raises(DataError, match="at most 255"):
        assign_values({str(n) for n in range(256)}, {})
