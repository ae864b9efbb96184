import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from ingested import dicom_series

from data_prep import ingest as module
from data_prep import reading
from data_prep.__main__ import main
from data_prep.config import IngestConfig, RulesConfig
from data_prep.ingest import Counts, ingest
from voxscale.contract import PERCENTILES
from voxscale.errors import ConfigError, DataError
from voxscale.files import locked
from voxscale.store import open_store

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / ".." / "shared" / "data"
SMALL = IngestConfig(workers=2, gigabytes=4.0, seconds=60)


def scan(seed, shape=(12, 14, 16)):
    generator = np.random.default_rng(seed)
    values = generator.integers(-1000, -900, shape).astype(np.int16)
    values[3:9, 2:12, 4:10] += 1000
    values[-8:, -8:, -20:] += 1000 * (max(shape) > 20)
    return values


def nifti(path, data, descrip="", affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    image.header["descrip"] = descrip.encode()
    image.to_filename(path)


def task(root, count=3):
    for number in range(count):
        label = np.zeros((12, 14, 16), np.uint8)
        label[4:6, 5:7, 6:9] = 1
        label[8, 8, 8] = 2
        nifti(root / "images" / f"case{number}.nii.gz", scan(number))
        nifti(root / "labels" / f"case{number}.nii.gz", label)
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "tumour"}}))


def rows(store):
    return [json.loads(line) for line in (store / "ledger.jsonl").read_text().splitlines()]


def by_place(store, root):
    """Ledger rows by the source's path below its root."""
    sources = [json.loads(line) for line in Path(f"{store}.private/sources.jsonl").read_text().splitlines()]
    found = rows(store)
    return {Path(source["path"]).relative_to(root.resolve()).as_posix(): found[source["row"]] for source in sources}


def every_byte(folder):
    return b"".join(str(p).encode() + (p.read_bytes() if p.is_file() else b"") for p in sorted(folder.rglob("*")))


def test_scans_come_through_with_values_and_measurements(tmp_path):
    nifti(tmp_path / "in" / "a.nii.gz", scan(0))
    dicom_series(tmp_path / "in" / "series", "P7")
    assert ingest([tmp_path / "in"], tmp_path / "store", SMALL) == Counts(found=2, accepted=2)
    store = open_store(tmp_path / "store")
    first, second = (store.entries[row["id"]] for row in rows(tmp_path / "store"))
    assert (first.modality, first.modality_from) == ("CT", "values")
    assert (second.modality, second.modality_from) == ("MR", "header")
    values = scan(0).transpose(2, 1, 0).astype(np.float32)
    volume = store.volume(rows(tmp_path / "store")[0]["id"])
    assert np.array_equal(volume.values(), values)
    assert volume.spacing == (3.0, 2.0, 2.0)
    assert first.percentiles == {str(p): pytest.approx(np.percentile(values, p)) for p in PERCENTILES}
    assert first.foreground_box == ((4, 10), (2, 12), (3, 9))
    assert first.foreground == pytest.approx(6 * 10 * 6 / values.size)
    assert first.label is None


def test_scans_belong_to_the_data_set_that_was_named(tmp_path):
    for number, name in enumerate(("one", "two", "two")):
        nifti(tmp_path / name / f"{number}.nii.gz", scan(number))
    for name in ("one", "two"):
        ingest([tmp_path / name], tmp_path / "store", replace(SMALL, dataset=name))
    store = open_store(tmp_path / "store")
    assert [entry.dataset for entry in store.entries.values()] == ["one", "two", "two"]
    assert [store.entry(key).dataset for key in store.entries] == ["one", "two", "two"]
    ingest([tmp_path / "two"], tmp_path / "store", replace(SMALL, dataset="2nd"))
    assert [entry.dataset for entry in open_store(tmp_path / "store").entries.values()] == ["one", "2nd", "2nd"]


@pytest.mark.parametrize("name", ["", "a/b", "two words", "Ä", "a\n"])
def test_names_of_data_sets_that_are_refused(name):
    with pytest.raises(ConfigError, match="ingest.dataset must be made of letters"):
        IngestConfig(dataset=name)


def test_task(tmp_path):
    task(tmp_path / "task")
    nifti(tmp_path / "task" / "images" / "extra.nii.gz", scan(9))
    nifti(tmp_path / "task" / "labels" / "orphan.nii.gz", scan(9))
    counts = ingest([tmp_path / "task"], tmp_path / "store", SMALL)
    assert counts == Counts(found=4, accepted=3, quarantined=1, orphan_labels=1, others=1)
    store = open_store(tmp_path / "store")
    assert store.classes == {1: "liver", 2: "tumour"}
    key = rows(tmp_path / "store")[0]["id"]
    assert store.entries[key].label == {"1": 12, "2": 1}
    assert (store.read_label(key) == 1).sum() == 12
    assert store.label_locations(key)[2].tolist() == [[8, 8, 8]]
    assert len({entry.subject for entry in store.entries.values()}) == 3
    assert rows(tmp_path / "store")[-1] | {"id": ""} == {
        "id": "", "kind": "label", "status": "rejected", "rule": "no_image",
        "reason": "no image of the task has this label's name", "part": 0, "notes": [], "thumbnail": False,
        "entry": None,
    }  # fmt: skip


def test_a_task_as_unlabelled_data(tmp_path):
    source, store = tmp_path / "task", tmp_path / "store"
    task(source)
    nifti(source / "images" / "extra.nii.gz", scan(9))
    (source / "labels" / "case0.nii.gz").write_text("broken")
    before = ingest([source], store, SMALL)
    assert before == Counts(found=4, accepted=2, rejected=1, quarantined=1, others=1)
    alone = replace(SMALL, labels="ignore")
    for _ in range(2):
        assert ingest([source], store, alone) == Counts(found=4, accepted=4, others=4)
    opened = open_store(store)
    assert [entry.label for entry in opened.entries.values()] == [None] * 4
    assert sorted(path.name for path in store.iterdir() if path.is_dir()) == sorted(
        [*opened.entries, "index", "thumbnails"]
    )
    ingest([source], tmp_path / "fresh", alone)
    assert open_store(tmp_path / "fresh").classes == {}
    assert [row["id"] for row in rows(store)] == [row["id"] for row in rows(tmp_path / "fresh")]
    assert ingest([source], store, SMALL) == before


def test_two_tasks_with_other_classes_as_unlabelled_data(tmp_path):
    for number, name in enumerate(("liver", "spleen")):
        nifti(tmp_path / "in" / name / "images" / "a.nii", scan(number))
        nifti(tmp_path / "in" / name / "labels" / "a.nii", scan(number))
        (tmp_path / "in" / name / "dataset.json").write_text(json.dumps({"labels": {name: 1}, "modality": "MR"}))
    counts = ingest([tmp_path / "in"], tmp_path / "store", replace(SMALL, labels="ignore"))
    assert counts == Counts(found=2, accepted=2, others=4)
    entries = open_store(tmp_path / "store").entries.values()
    assert [(entry.modality, entry.modality_from) for entry in entries] == [("MR", "config")] * 2


def test_further_channels_are_quarantined(tmp_path):
    source = tmp_path / "task"
    task(source, 1)
    for channel in range(3):
        nifti(source / "imagesTr" / f"a_000{channel}.nii.gz", scan(10 + channel))
    (source / "labelsTr").mkdir()
    (source / "labels" / "case0.nii.gz").rename(source / "labelsTr" / "a.nii.gz")
    counts = ingest([source], tmp_path / "store", SMALL)
    assert counts == Counts(found=4, accepted=1, quarantined=3, others=1)
    found = by_place(tmp_path / "store", source)
    assert {place: row["rule"] for place, row in found.items()} == {
        "images/case0.nii.gz": "no_label",
        "imagesTr/a_0000.nii.gz": None,
        "imagesTr/a_0001.nii.gz": "extra_channel",
        "imagesTr/a_0002.nii.gz": "extra_channel",
    }
    assert "only the first channel" in found["imagesTr/a_0001.nii.gz"]["reason"]


def test_segmentations_among_scans_are_rejected(tmp_path):
    masks = np.zeros((12, 14, 16), np.uint8)
    masks[2:9, 3:12, 4:12] = 1
    nifti(tmp_path / "in" / "case_1" / "imaging.nii.gz", scan(0))
    nifti(tmp_path / "in" / "case_1" / "segmentation.nii.gz", masks)
    nifti(tmp_path / "in" / "case_2" / "ct.nii.gz", scan(1))
    nifti(tmp_path / "in" / "case_2" / "segmentation" / "liver.nii.gz", masks[::-1].copy())
    for store, settings in (("guessed", SMALL), ("declared", replace(SMALL, modality="CT"))):
        counts = ingest([tmp_path / "in"], tmp_path / store, settings)
        assert counts == Counts(found=4, accepted=2, rejected=2)
        assert [row["rule"] for row in rows(tmp_path / store)] == [None, "label_like", None, "label_like"]


def test_default_workers_are_the_cpus_it_may_use(tmp_path, monkeypatch):
    asked = []
    pool = module.ThreadPoolExecutor
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda workers: asked.append(workers) or pool(workers))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5})
    nifti(tmp_path / "in" / "a.nii", scan(0))
    assert ingest([tmp_path / "in"], tmp_path / "store", replace(SMALL, workers=None)).accepted == 1
    assert asked == [3]


def test_every_fault_gets_its_row(tmp_path):
    source = tmp_path / "in"
    good = scan(0)
    nifti(source / "a.nii.gz", good)
    (source / "b_same.nii.gz").write_bytes((source / "a.nii.gz").read_bytes())
    (source / "c_cut.nii.gz").write_bytes((source / "a.nii.gz").read_bytes()[:-100])
    (source / "d_text.nii.gz").write_text("a text")
    (source / "e_empty.nii").write_bytes(b"")
    nifti(source / "f_flat.nii", np.full((12, 14, 16), 5, np.uint8))
    nifti(source / "g_nan.nii", np.where(good > 0, np.nan, good).astype(np.float32))
    nifti(source / "h_4d.nii", np.stack([good, good], -1))
    nifti(source / "i_thin.nii", good[:, :, :2])
    (source / "j_gone.nii").symlink_to(tmp_path / "nowhere")
    (source / "k_broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    counts = ingest([source], tmp_path / "store", SMALL)
    assert counts == Counts(found=11, accepted=2, rejected=8, quarantined=1, parts=1)
    found = {place[0]: row["rule"] for place, row in by_place(tmp_path / "store", source).items() if place[0] != "j"}
    assert found == {
        "a": None, "b": "duplicate", "c": "truncated", "d": "unreadable", "e": "truncated", "f": "constant",
        "g": "nonfinite", "h": None, "i": "extent", "k": "unreadable",
    }  # fmt: skip
    broken = [row for row in rows(tmp_path / "store") if row["reason"] == "file cannot be read"]
    assert [row["rule"] for row in broken] == ["unreadable"]  # the broken link
    assert all((row["entry"] is None) == (row["status"] != "accepted") for row in rows(tmp_path / "store"))


def test_faulty_labels(tmp_path):
    source = tmp_path / "task"
    task(source, 5)
    label = nibabel.load(source / "labels" / "case0.nii.gz").get_fdata()
    nifti(source / "labels" / "case0.nii.gz", (label * 1.5).astype(np.float32))
    nifti(source / "labels" / "case1.nii.gz", label[:-1].astype(np.uint8))
    nifti(source / "labels" / "case2.nii.gz", (label * 3).astype(np.uint8))
    (source / "labels" / "case3.nii.gz").write_bytes((source / "labels" / "case3.nii.gz").read_bytes()[:-50])
    nifti(source / "labels" / "case4.nii.gz", label.astype(np.uint8), affine=np.diag([2.0, 2.0, 3.01, 1.0]))
    assert ingest([source], tmp_path / "store", SMALL) == Counts(found=5, rejected=5, others=1)
    found = rows(tmp_path / "store")
    assert [row["rule"] for row in found] == ["label_values", "label_grid", "label_values", "truncated", "label_grid"]
    assert found[3]["reason"].startswith("label: ")


def test_label_in_another_voxel_order_is_the_same_grid(tmp_path):
    source = tmp_path / "task"
    task(source, 1)
    path = source / "labels" / "case0.nii.gz"
    turned = nibabel.load(path).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    before = nibabel.load(path).get_fdata().transpose(2, 1, 0)
    turned.to_filename(path)
    assert ingest([source], tmp_path / "store", SMALL).accepted == 1
    store = open_store(tmp_path / "store")
    assert np.array_equal(store.read_label(next(iter(store.entries))), before)


def test_undeclared_classes_are_named_by_number(tmp_path):
    task(tmp_path / "task", 1)
    (tmp_path / "task" / "dataset.json").unlink()
    for _ in range(2):
        assert ingest([tmp_path / "task"], tmp_path / "store", SMALL).accepted == 1
        assert open_store(tmp_path / "store").classes == {1: "1", 2: "2"}


def test_no_patient_reaches_store_or_ledger(tmp_path, capfd, caplog):
    source = tmp_path / "CANARY^SRC"
    dicom_series(source / "CANARY^DIR", "CANARY^JANE")
    dicom_series(source / "short", "CANARY^JOHN", seed=1, count=1)
    nifti(source / "CANARY^FILE.nii.gz", scan(0), descrip="CANARY^DESCRIP")
    nifti(source / "CANARY^FLAT.nii.gz", np.ones((12, 14, 16), np.uint8), descrip="CANARY^DESCRIP")
    (source / "CANARY^BAD.nii.gz").write_text("CANARY^TEXT")
    (source / "CANARY^BAD.nrrd").write_text("NRRD0004\nCANARY^TEXT: 1\nspacings: 1 1 1\n\n")
    (source / "CANARY^BAD.dcm").write_text("CANARY^TEXT" * 40)
    store = tmp_path / "out" / "store"
    assert ingest([source], store, SMALL) == Counts(found=7, accepted=2, rejected=5)
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "CANARY" not in shown
    for text in (b"CANARY", b"JANE", b"19700102", b"1.4.0"):
        assert text not in every_byte(store)
    private = Path(f"{store}.private")
    assert b"CANARY" in every_byte(private)
    assert (private / "sources.jsonl").exists()


def test_subjects(tmp_path):
    source = tmp_path / "in"
    for number, name in enumerate(("p1_a", "p1_b", "p2_a", "other")):
        nifti(source / f"{name}.nii", scan(number))
    for number, folder in enumerate(("s1", "s2")):
        dicom_series(source / folder, "SAME", seed=number)
    settings = IngestConfig(workers=2, gigabytes=4.0, subject=r"^(p\d)_")
    counts = ingest([source], tmp_path / "store", settings)
    assert counts == Counts(found=6, accepted=5, quarantined=1)
    found = by_place(tmp_path / "store", source)
    assert found["other.nii"]["rule"] == "no_subject"
    subject = {place[:4]: row["entry"]["subject"] for place, row in found.items() if row["entry"]}
    assert subject["p1_a"] == subject["p1_b"] != subject["p2_a"]
    assert subject["s1/S"] == subject["s2/S"]
    with (tmp_path / "who.csv").open("w") as handle:
        csv.writer(handle).writerows([("file", "subject"), ("other.nii", "x"), ("p1_a.nii", "x")])
    ingest([source], tmp_path / "two", IngestConfig(workers=2, gigabytes=4.0, subject=str(tmp_path / "who.csv")))
    found = by_place(tmp_path / "two", source)
    assert found["other.nii"]["entry"]["subject"] == found["p1_a.nii"]["entry"]["subject"]
    assert found["p2_a.nii"]["rule"] == "no_subject"
    with (tmp_path / "who.csv").open("a") as handle:
        csv.writer(handle).writerow(("p2_a.nii", "y"))
    counts = ingest(
        [source], tmp_path / "two", IngestConfig(workers=2, gigabytes=4.0, subject=str(tmp_path / "who.csv"))
    )
    assert counts == Counts(found=6, accepted=5, quarantined=1)


def test_second_run_reads_nothing_again(tmp_path, monkeypatch):
    task(tmp_path / "task")
    first = ingest([tmp_path / "task"], tmp_path / "store", SMALL)
    before = every_byte(tmp_path / "store")
    monkeypatch.setattr(reading, "take_in", None)
    assert ingest([tmp_path / "task"], tmp_path / "store", SMALL) == first
    assert every_byte(tmp_path / "store") == before


def test_what_changed_is_read_again_in_its_place(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 1)):
        nifti(source / f"{name}.nii", scan(seed))
    assert ingest([source], store, SMALL) == Counts(found=4, accepted=3, quarantined=1)
    before = rows(store)
    folder = store / before[0]["id"]
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    folder.rmdir()
    nifti(source / "b.nii", scan(7))
    assert ingest([source], store, SMALL) == Counts(found=4, accepted=4)
    after = rows(store)
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1]["id"] != before[1]["id"]
    assert after[3]["id"] == before[1]["id"]  # the former duplicate has taken its twin's place
    opened = open_store(store)
    assert all(opened.read(row["id"]).size for row in after)


def test_other_rules_judge_again(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    nifti(source / "a.nii", scan(0))
    nifti(source / "b.nii", scan(1)[:, :, :6])
    assert ingest([source], store, SMALL) == Counts(found=2, accepted=1, rejected=1)
    lenient = IngestConfig(workers=2, gigabytes=4.0, rules=RulesConfig(min_slices=6))
    assert ingest([source], store, lenient) == Counts(found=2, accepted=2)
    strict = IngestConfig(workers=2, gigabytes=4.0, rules=RulesConfig(min_slices=100))
    assert ingest([source], store, strict) == Counts(found=2, rejected=2)
    assert [path.name for path in store.iterdir() if path.is_dir() and path.name != "index"] == ["thumbnails"]


def test_killed_anywhere_it_goes_on(tmp_path):
    source = tmp_path / "in"
    for number in range(10):
        nifti(source / f"s{number}.nii.gz", scan(number, (40, 44, 48)))
    nifti(source / "s3b_same.nii.gz", scan(3, (40, 44, 48)))
    nifti(source / "s5b_flat.nii.gz", np.ones((12, 12, 12), np.uint8))
    expected = ingest([source], tmp_path / "calm", SMALL)
    assert expected == Counts(found=12, accepted=10, rejected=1, quarantined=1)
    command = [sys.executable, "-m", "data_prep", "ingest", str(source), str(tmp_path / "hard"), "--workers", "2"]
    private = tmp_path / "hard.private"
    private.mkdir()
    private.joinpath("key").write_text((tmp_path / "calm.private" / "key").read_text())
    ledger, kills = tmp_path / "hard" / "ledger.jsonl", 0
    for wanted in (0, 2, 5, 8):
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "hard").exists() and (ledger.read_text().count("\n") if ledger.exists() else 0) >= wanted:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    assert kills >= 2
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["accepted"] == 10
    assert rows(tmp_path / "hard") == rows(tmp_path / "calm")
    calm, hard = open_store(tmp_path / "calm"), open_store(tmp_path / "hard")
    assert all(np.array_equal(calm.read(key), hard.read(key)) for key in calm.entries)
    left = [path.name for path in (tmp_path / "hard").iterdir() if path.name.startswith(".")]
    assert left == [".lock"]


def test_cut_last_lines_are_mended(tmp_path):
    source, store = tmp_path / "in", tmp_path / "store"
    for number in range(3):
        nifti(source / f"s{number}.nii", scan(number))
    expected = ingest([source], store, SMALL)
    before = rows(store)
    for path in (store / "ledger.jsonl", Path(f"{store}.private/sources.jsonl")):
        path.write_bytes(path.read_bytes()[:-20])
        assert ingest([source], store, SMALL) == expected
        assert rows(store) == before


def test_moved_sources_stay_the_same_inputs(tmp_path):
    store = tmp_path / "store"
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        nifti(tmp_path / "in" / f"{name}.nii", scan(seed))
    expected = ingest([tmp_path / "in"], store, SMALL)
    before = rows(store)
    (tmp_path / "in").rename(tmp_path / "moved")
    assert ingest([tmp_path / "moved"], store, SMALL) == expected == Counts(found=3, accepted=2, quarantined=1)
    assert rows(store) == before
    nifti(tmp_path / "more" / "a.nii", scan(0))  # a true copy: the other one is still there
    assert ingest([tmp_path / "more"], store, SMALL) == Counts(found=1, quarantined=1)


@pytest.mark.parametrize("folder", ["ct_unlabelled", "labelled/hippocampus_mr"])
def test_real_scans_are_those_simpleitk_reads(tmp_path, folder):
    found = sorted((DATA / folder).rglob("images/*.nii.gz")) or sorted((DATA / folder).glob("*.nii.gz"))
    for path in found[:3]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).symlink_to(path.resolve())
    if not found:
        nifti(tmp_path / "in" / "a.nii.gz", scan(0))
    counts = ingest([tmp_path / "in"], tmp_path / "store", SMALL)
    assert counts.accepted == counts.found == max(1, len(found[:3]))
    store = open_store(tmp_path / "store")
    for path, row in zip(sorted((tmp_path / "in").iterdir()), rows(tmp_path / "store"), strict=True):
        image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "RAS")
        volume = store.volume(row["id"])
        assert image.GetDirection() == (-1, 0, 0, 0, -1, 0, 0, 0, 1)  # rises to R, A, S where ITK counts to L, P, S
        assert np.array_equal(volume.values(), SimpleITK.GetArrayFromImage(image))
        left, back, up = image.GetOrigin()
        assert volume.origin == pytest.approx((up, -back, -left), abs=1e-3)
        assert volume.spacing == pytest.approx(image.GetSpacing()[::-1], rel=1e-5)


def run_main(capsys, *args):
    code = main(["ingest", *map(str, args)])
    return code, capsys.readouterr()


def test_command_line(tmp_path, capsys, caplog):
    nifti(tmp_path / "in" / "a.nii", scan(0))
    nifti(tmp_path / "more" / "b.nii", scan(1)[:, :, :6])
    code, shown = run_main(capsys, tmp_path / "in", tmp_path / "more", tmp_path / "store", "--workers", "1")
    assert code == 0
    assert len(shown.out.splitlines()) == 1
    assert json.loads(shown.out) == {
        "found": 2, "accepted": 1, "rejected": 1, "quarantined": 0, "parts": 0, "orphan_labels": 0,
        "others": 0, "files": {},
    }  # fmt: skip
    caplog.clear()
    code, shown = run_main(capsys, tmp_path / "more", tmp_path / "two", "--rules.min-slices", "5", "--modality", "MR")
    assert code == 0
    assert next(iter(open_store(tmp_path / "two").entries.values())).modality_from == "config"


def test_nothing_accepted_is_status_2(tmp_path, capsys, caplog):
    (tmp_path / "empty").mkdir()
    code, shown = run_main(capsys, tmp_path / "empty", tmp_path / "store")
    assert code == 2
    assert json.loads(shown.out)["found"] == 0
    assert [record.message for record in caplog.records] == ["no scan was accepted out of 0 found"]
    nifti(tmp_path / "in" / "a.nii", scan(0)[:2])
    code, shown = run_main(capsys, tmp_path / "in", tmp_path / "store")
    assert code == 2
    assert json.loads(shown.out)["rejected"] == 1


def test_failures_are_status_1_and_one_line(tmp_path, capsys, caplog, monkeypatch):
    nifti(tmp_path / "in" / "a.nii", scan(0))
    assert run_main(capsys, tmp_path / "nowhere", tmp_path / "store")[0] == 1
    assert "source folder 1 of 1 must exist" in caplog.records[-1].message
    with locked(tmp_path / "store"):
        assert run_main(capsys, tmp_path / "in", tmp_path / "store")[0] == 1
    assert "must be free" in caplog.records[-1].message
    assert run_main(capsys, tmp_path / "in", tmp_path / "in" / "store")[0] == 1
    assert "outside the sources" in caplog.records[-1].message

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reading.Readers, "call", full)
    caplog.clear()
    assert run_main(capsys, tmp_path / "in", tmp_path / "store")[0] == 1
    assert [r.message for r in caplog.records] == [
        "error: store needs free disk space to go on (No space left on device)"
    ]
    assert not (tmp_path / "store" / "ledger.jsonl").exists()
    monkeypatch.undo()
    assert run_main(capsys, tmp_path / "in", tmp_path / "store")[0] == 0


def test_store_inside_or_around_the_sources_is_refused(tmp_path):
    nifti(tmp_path / "in" / "a.nii", scan(0))
    for store in (tmp_path / "in", tmp_path / "in" / "b", tmp_path):
        with pytest.raises(ConfigError, match="outside the sources"):
            ingest([tmp_path / "in"], store, SMALL)


def test_other_classes_need_another_store(tmp_path):
    task(tmp_path / "task", 1)
    ingest([tmp_path / "task"], tmp_path / "store", SMALL)
    (tmp_path / "task" / "dataset.json").write_text(json.dumps({"labels": {"1": "spleen", "2": "tumour"}}))
    with pytest.raises(DataError, match="must be 'liver', not 'spleen'"):
        ingest([tmp_path / "task"], tmp_path / "store", SMALL)


INFINITE = [{"seconds": float("inf")}, {"gigabytes": float("inf")}, {"gigabytes": 1e12}, {"seconds": float("nan")}]


@pytest.mark.parametrize("values", [{"workers": 0}, {"labels": "keep"}, {"seconds": 0}, {"gigabytes": 0.5}, *INFINITE])
def test_bad_settings(values):
    with pytest.raises(ConfigError, match="ingest."):
        IngestConfig(**values)


def test_usage(caplog):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["nothing"]) == 2


def test_pydicom_sees_what_was_planted(tmp_path):
    dicom_series(tmp_path / "s", "CANARY")
    assert pydicom.dcmread(next((tmp_path / "s").iterdir())).PatientName == "CANARY"
