"""Ingest as a whole: real odd files with stated verdicts, planted identifiers, files damaged at random, labels."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from io_series import MR, make_series
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from planted import WORDS, plant_dicom, plant_nifti

from data_prep.__main__ import main
from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from voxscale.seed import rng
from voxscale.store import open_store

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
REAL = pytest.mark.skipif(not DATA.is_dir(), reason="real files are not here")
SMALL = IngestConfig(workers=2, gigabytes=4.0, seconds=60)


def rows(store):
    return [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]


def verdicts(store, root):
    """Rule (or None) of each first volume by its source's place."""
    sources = [json.loads(line) for line in Path(f"{store}.private/sources.jsonl").read_text().splitlines()]
    found = rows(store)
    return {
        Path(source["path"]).relative_to(root.resolve()).as_posix(): found[source["row"]]["rule"]
        for source in sources
        if source["part"] == 0
    }


@REAL
@pytest.mark.slow
def test_every_real_dicom_and_odd_file_has_its_verdict(tmp_path):
    """Each file of both folders is part of an accepted or rejected series, a label, or a counted kind."""
    for name in ("dicom", "odd"):
        root, store = DATA / name, tmp_path / name
        counts = ingest([root], store, SMALL)
        assert counts.found == counts.accepted + counts.rejected + counts.quarantined
    assert verdicts(tmp_path / "dicom", DATA / "dicom") == {
        "broken_single/MR_truncated.dcm": "single_slice",
        "broken_single/meta_missing_tsyntax.dcm": "unreadable",
        "broken_single/no_meta.dcm": "unreadable",
        "ct_headtilt_varspacing_ge/11.dcm": "sheared",
        "ct_j2k_undecodable_phantom/000300.dcm": "undecodable",
        "ct_jpeg2000_totalseg/CT.1.3.12.2.1107.5.1.4.60064.30000022120808113428000016573": None,
        "ct_jpeg2000_totalseg_label.nii.gz": "label_like",
        "ct_mixed_series_folder/ID_0002_AGE_0074_CONTRAST_1_CT.dcm": "single_slice",
        "ct_mixed_series_folder/ID_0004_AGE_0056_CONTRAST_1_CT.dcm": "single_slice",
        "ct_mixed_series_folder/ID_0008_AGE_0051_CONTRAST_1_CT.dcm": "single_slice",
        "ct_rtstruct_sts002/image/000000.dcm": None,
        "ct_with_dicomseg_dcmqi/01.dcm": "extent",
        "ct_with_dicomseg_dcmqi/liver.dcm": "extra_label",
        "derived_gap/IM000.dcm": "missing_geometry",  # one series with the two folders below: equal UIDs
        "mr_dce_multiphase_ucsfbr06/1-028.dcm": "extent",
        "mr_enhanced_multiframe/emri/emri_small.dcm": "missing_geometry",
        "mr_enhanced_multiframe/siemens_xa10/6_1.dcm": "extent",
        "mr_mosaic_siemens/IM-0001-0001.dcm": None,
        "mr_multiecho_siemens_phantom/e1_15.dcm": None,
        "mr_rtstruct_sts002/image/000000.dcm": None,
        "single_transfer_syntaxes/CT_small.dcm": "single_slice",
        "single_transfer_syntaxes/JPEG2000.dcm": "secondary_capture",
        "single_transfer_syntaxes/image_dfl.dcm": "secondary_capture",
    } | {place: rule for place, rule in verdicts(tmp_path / "dicom", DATA / "dicom").items() if "MR_small" in place}
    odd = verdicts(tmp_path / "odd", DATA / "odd")
    assert {place: rule for place, rule in odd.items() if rule is not None} == {
        "5d_small.nii": "not_3d",
        "complex64.nii.gz": "bad_dtype",
        "derived/constant.nii.gz": "constant",
        "derived/empty_file.nii.gz": "truncated",
        "derived/nan_inf.nii.gz": "nonfinite",
        "derived/pair_image.nii.gz": "duplicate",
        "derived/pair_label_affine_mismatch.nii.gz": "label_like",
        "derived/pair_label_empty.nii.gz": "constant",
        "derived/pair_label_shape_mismatch.nii.gz": "label_like",
        "derived/plain_named_gz.nii.gz": "unreadable",
        "derived/singular_sform.nii.gz": "bad_affine",
        "derived/truncated.nii.gz": "truncated",
        "derived/zero_pixdim.nii.gz": "bad_affine",
        "fuzz_bad_header.nii": "unreadable",
        "int64_3x3x3.nii": "extent",
        "not_a_nifti.nii": "unreadable",
        "rgb24_3x3x3.nii": "bad_dtype",
        "shear_affine_ct_phantom.nii.gz": "sheared",
    }
    store = open_store(tmp_path / "dicom")
    labelled = [(entry.modality, entry.label) for entry in store.entries.values() if entry.label]
    assert sorted(kind for kind, _ in labelled) == ["CT", "MR"]
    assert {"gtv_mass_ct", "gtv_mass_mr_t1"} <= set(store.classes.values())


def plant(root):
    """Scans whose every text field says CANARY; returns the words to search for."""
    root.mkdir(parents=True)

    def change(index, item):
        plant_dicom(item)
        item.SeriesInstanceUID, item.StudyInstanceUID = "1.2.77.19610203", "1.2.78.19610203"

    made, _ = make_series(root / "CANARY^study", change, kind=MR, count=12, turn=(1.0, 0, 0, 0, 1, 0))
    bad = pydicom.dcmread(made[0])
    bad.SeriesInstanceUID, bad.SOPClassUID = "1.2.79.19610203", "1.2.840.10008.5.1.4.1.1.7"
    bad.save_as(root / "CANARY_screen.dcm")
    values = rng(0, "planted").integers(0, 900, (16, 17, 18)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
    plant_nifti(image)
    image.to_filename(root / "CANARY_19610203.nii.gz")
    (root / "CANARY_cut.nii.gz").write_bytes((root / "CANARY_19610203.nii.gz").read_bytes()[:-200])
    (root / "CANARY.json").write_text('{"PatientName": "CANARY"}')
    text = PngInfo()
    text.add_text("Patient", "CANARY")
    (root / "pictures").mkdir()
    picture = rng(0, "picture").integers(0, 255, (40, 50)).astype(np.uint8)
    Image.fromarray(picture).save(root / "pictures" / "CANARY.png", pnginfo=text)
    total = root / "s_CANARY"
    (total / "segmentations").mkdir(parents=True)
    nibabel.Nifti1Image(values[::-1].copy(), image.affine).to_filename(total / "ct.nii.gz")
    mask = (values > 500).astype(np.uint8)
    for name in ("liver", "CANARY_organ"):
        nibabel.Nifti1Image(mask, image.affine).to_filename(total / "segmentations" / f"{name}.nii.gz")
    return WORDS


def test_no_identifier_is_in_any_byte_outside_the_private_folder(tmp_path, capfd):
    root, store = tmp_path / "CANARY-ward", tmp_path / "store"
    words = plant(root)
    assert (
        main(["ingest", str(root), str(store), "--workers", "2", "--rules.min-extent", "5", "--rules.min-slices", "6"])
        == 0
    )
    counts = json.loads(capfd.readouterr().out)
    assert (counts["accepted"], counts["rejected"]) == (4, 2)
    assert main(["report", str(store)]) == 0
    said = capfd.readouterr()
    assert not any(word.decode() in said.out + said.err for word in words)
    searched = 0
    for path in store.rglob("*"):
        assert not any(word.decode() in str(path.relative_to(store)) for word in words)
        if path.is_file():
            searched += 1
            data = path.read_bytes()
            assert not any(word in data for word in words), path.name
    assert searched > 25
    table = str(
        pq.read_table(store / "index" / "part-00000.parquet").to_pylist()
    ).encode()  # compressed, so read it too
    assert not any(word in table for word in words)
    assert any(b"CANARY" in path.read_bytes() for path in Path(f"{store}.private").iterdir())
    classes = set(open_store(store).classes.values())
    assert "liver" in classes
    assert any(name.startswith("structure-") for name in classes)
    entries = open_store(store).entries.values()
    (series,) = [entry for entry in entries if entry.day is not None]
    assert all(re.fullmatch("[0-9a-f]{16}", each or "") for each in (series.subject, series.study, series.series))
    assert all(entry.privacy.passed for entry in entries)


@REAL
@pytest.mark.slow
def test_two_hundred_damaged_files_are_accounted_for(tmp_path):
    """Truncations, flipped bits and swapped headers of real files; the process lives and counts add up."""
    source = tmp_path / "in"
    small = sorted(DATA.glob("labelled/hippocampus_mr/images/*"))[:6]
    small += [DATA / "odd" / name for name in ("mr_bigendian_int16.nii", "int64_3x3x3.nii", "hdr_img_pair.hdr")]
    small += sorted((DATA / "dicom" / "single_transfer_syntaxes").glob("*_small*"))
    small += sorted(DATA.glob("2d/chest_xray/images/*"))[:3]
    for number in range(200):
        draw = rng(0, "damaged", number)
        origin = small[int(draw.integers(len(small)))]
        data = bytearray(origin.read_bytes())
        match number % 3:
            case 0:
                del data[int(draw.integers(0, len(data))) :]
            case 1:
                for at in draw.integers(0, len(data), 1 + int(draw.integers(40))):
                    data[at] ^= 1 << int(draw.integers(8))
            case _:
                other = small[int(draw.integers(len(small)))].read_bytes()
                data[: min(352, len(other), len(data))] = other[: min(352, len(other), len(data))]
        folder = source / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / origin.name).write_bytes(data)
    counts = ingest([source], tmp_path / "store", replace(SMALL, seconds=20.0, gigabytes=2.0))
    assert counts.found == counts.accepted + counts.rejected + counts.quarantined
    sources = Path(f"{tmp_path}/store.private/sources.jsonl").read_text().splitlines()
    taken = sum(row["files"] for row in map(json.loads, sources) if row["part"] == 0)
    assert taken + counts.others == 200
    assert counts.rejected > 60
    assert all(row["reason"] for row in rows(tmp_path / "store") if row["status"] != "accepted")
    unknown = [row for row in rows(tmp_path / "store") if row["rule"] in ("reader_failed", "reader_crashed", "timeout")]
    assert [row["rule"] for row in unknown] == []


@REAL
@pytest.mark.slow
def test_images_with_classes_and_masks(tmp_path):
    shutil.copytree(DATA / "2d" / "fundus_vessels", tmp_path / "in" / "fundus")
    (tmp_path / "in" / "xray" / "images").mkdir(parents=True)
    shutil.copy(DATA / "2d" / "chest_xray" / "labels.csv", tmp_path / "in" / "xray")
    lines = (DATA / "2d" / "chest_xray" / "labels.csv").read_text().splitlines()
    (tmp_path / "in" / "xray" / "labels.csv").write_text("\n".join(lines[:1] + lines[1:4] + lines[60:63]))
    for line in lines[1:4] + lines[60:63]:
        shutil.copy(DATA / "2d" / "chest_xray" / "images" / line.split(",")[0], tmp_path / "in" / "xray" / "images")
    counts = ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    assert (counts.found, counts.accepted, counts.rejected) == (14, 14, 0)
    store = open_store(tmp_path / "store")
    colour = [key for key, entry in store.entries.items() if entry.channels == 3]
    assert len(colour) == 8
    values, label = store.read(colour[0]), store.read_label(colour[0])
    assert values.shape == (3, 1, 960, 999)
    assert label.shape == (1, 960, 999)
    assert np.unique(label).tolist() == [0, 1]
    assert store.image_classes == {0: "normal", 1: "pneumonia"}
    assert (
        sorted(entry.image_class for entry in store.entries.values() if entry.image_class is not None)
        == [0] * 3 + [1] * 3
    )


def test_volumes_of_one_input(tmp_path):
    data = rng(0, "phases").integers(0, 900, (20, 21, 22, 6)).astype(np.int16)
    (tmp_path / "in").mkdir()
    nibabel.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "in" / "a.nii.gz")
    source, store = [tmp_path / "in"], tmp_path / "store"
    counts = ingest(source, store, SMALL)
    assert (counts.found, counts.accepted, counts.parts) == (1, 1, 3)
    entries = open_store(store).entries
    assert sorted(entry.part for entry in entries.values()) == [0, 1, 3, 4]
    assert {entry.parts for entry in entries.values()} == {6}
    for key, entry in entries.items():
        assert np.array_equal(open_store(store).volume(key).values(), data[..., entry.part].transpose(2, 1, 0))
    again = ingest(source, store, SMALL)
    assert again == counts
    fewer = ingest(source, store, replace(SMALL, volumes=1))
    assert (fewer.accepted, fewer.parts) == (1, 0)
    assert [entry.part for entry in open_store(store).entries.values()] == [0]
    none = ingest(source, store, replace(SMALL, volumes=0))
    assert (none.accepted, none.rejected) == (0, 1)
    assert rows(store)[-1]["rule"] == "several_volumes" or "several_volumes" in {row["rule"] for row in rows(store)}


def test_a_volume_that_cannot_be_used_does_not_cost_the_others(tmp_path):
    def echo(time):
        def change(index, item):
            item.EchoTime, item.SeriesInstanceUID, item.InstanceNumber = time, "1.2.3.77", index
            item.SOPInstanceUID = f"1.2.3.{int(time)}.{index}"
            item.Rows, item.Columns = 10, 12

        return change

    (tmp_path / "in").mkdir()
    first, _ = make_series(tmp_path / "in" / "a", echo(5.0), kind=MR, count=7, turn=(1.0, 0, 0, 0, 1, 0))
    make_series(tmp_path / "in" / "b", echo(9.0), kind=MR, count=6, turn=(1.0, 0, 0, 0, 1, 0), seed=1)
    lost = sorted(first, key=lambda path: pydicom.dcmread(path).InstanceNumber)[3]
    lost.unlink()
    lenient = replace(SMALL, rules=replace(SMALL.rules, min_slices=5, min_extent=4.0))
    counts = ingest([tmp_path / "in"], tmp_path / "store", lenient)
    assert (counts.found, counts.accepted, counts.rejected, counts.parts) == (1, 0, 1, 1)
    assert {row["kind"]: row["rule"] for row in rows(tmp_path / "store")} == {"part": None, "image": "missing_slices"}
