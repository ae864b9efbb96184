"""Sources behind `s3://` URLs, from a real server on loopback: the store is that of the same files in a folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ingested import SMALL, bytes_of, nifti, sources, with_key_of
from object_store import inside, requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from data_prep import mirror, reading
from data_prep.__main__ import main
from data_prep.config import IngestConfig
from data_prep.discover import discover
from data_prep.heads import HEADS
from data_prep.ingest import ingest, ingest_part
from data_prep.mirror import Mirrors
from data_prep.part import Part
from voxscale.errors import ConfigError, StorageError

ROOT = Path(__file__).resolve().parents[2]


def dicom(path, number, pixels=80_000, private=0, icon=False, implicit=False):
    """A slice of one series; its header is longer by some private bytes."""
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    item = Dataset()
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = syntax
    item.SOPClassUID = item.file_meta.MediaStorageSOPClassUID = CTImageStorage
    item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
    item.PatientID, item.SeriesInstanceUID, item.StudyInstanceUID = "P1", "1.2.3", "1.2"
    if private:
        item.private_block(0x0019, "TEST", create=True).add_new(1, "OB", b"\1" * private)
    if icon:
        small = Dataset()
        small.PixelData = b"\2" * 64
        small["PixelData"].VR = "OW"
        item.IconImageSequence = Sequence([small])
    item.PixelData = b"\3" * pixels
    item["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Files of many kinds in folders, and the store of one undisturbed run on them."""
    folder = tmp_path_factory.mktemp("calm")
    sources(folder / "in" / "some")
    for number in range(3):
        nifti(folder / "in" / "task" / "imagesTr" / f"a{number}_0000.nii.gz", 30 + number)
        nifti(folder / "in" / "task" / "labelsTr" / f"a{number}.nii.gz", 40 + number)
    (folder / "in" / "task" / "dataset.json").write_text(json.dumps({"labels": {"organ": 1}, "modality": {"0": "CT"}}))
    (folder / "in" / "notes.txt").write_text("some notes " * 20_000)
    (folder / "in" / "empty.bin").touch()
    ingest([folder / "in"], folder / "store", SMALL)
    return folder


@pytest.fixture(scope="module")
def scans(calm, s3):
    return s3.upload(calm / "in")


def private_of(store):
    return store.with_name(f"{store.name}.private")


def fetched(made):
    return [key for method, key, _ in made if method == "get_object"]


def test_the_store_is_that_of_the_files(calm, scans, tmp_path):
    store = with_key_of(calm / "store", tmp_path / "store")
    with requests() as made:
        counts = ingest([scans], store, SMALL)
    assert counts == ingest([calm / "in"], calm / "store", SMALL)
    wanted, found = bytes_of(calm / "store"), bytes_of(store)
    # An unreadable input would be named by its place, which is another one; here all can be hashed.
    assert found == wanted
    heads = len([p for p in (calm / "in").rglob("*") if p.is_file()])
    assert len(fetched(made)) <= 2 * heads  # a head of each, and each whole once, whether hashed, read or both
    assert not list(private_of(store).glob("mirror/.copies*"))
    words = b"".join(data for data in found.values() if data)
    assert b"bucket" not in words
    assert b"imagesTr" not in words


def test_a_second_run_fetches_nothing(calm, scans, tmp_path):
    store = with_key_of(calm / "store", tmp_path / "store")
    ingest([scans], store, SMALL)
    before = bytes_of(store)
    with requests() as made:
        ingest([scans], store, SMALL)
    again = {Path(key).name for key in fetched(made)}
    assert again <= {f"same{n}.nii.gz" for n in range(4)} | {"good1.nii.gz"}  # duplicates are decided in every run
    assert bytes_of(store) == before
    shutil.rmtree(private_of(store) / "mirror")
    ingest([scans], store, SMALL)
    assert bytes_of(store) == before


def test_parts_share_a_mirror(calm, scans, tmp_path):
    store = with_key_of(calm / "store", tmp_path / "store")
    shares = [ingest_part([scans], store, SMALL, Part(number, 3)) for number in (3, 1, 2)]
    with requests() as made:
        ingest([scans], store, SMALL)
    assert bytes_of(store) == bytes_of(calm / "store")
    assert sum(share.read for share in shares) > 0
    assert not [key for key in fetched(made) if "good0" in key]


def test_the_mirror_is_sparse_and_disk_use_is_bounded(s3, tmp_path, monkeypatch):
    big = tmp_path / "in"
    for number in range(8):
        values = np.random.default_rng(number).integers(0, 1000, (40, 44, 48)).astype(np.int16)
        big.mkdir(exist_ok=True)
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(big / f"s{number}.nii")
    url, most = s3.upload(big), []
    real = reading.Reading._read

    def watched(self, job, now):
        try:
            return real(self, job, now)
        finally:
            most.append(len(list(private_of(tmp_path / "store").glob("mirror/.copies*/*/*.nii"))))

    monkeypatch.setattr(reading.Reading, "_read", watched)
    assert ingest([url], tmp_path / "store", IngestConfig(workers=1, gigabytes=4.0)).accepted == 8
    assert 1 <= max(most) <= 3
    for path in private_of(tmp_path / "store").glob("mirror/*/objects/*.nii"):
        assert path.stat().st_size == (big / path.name).stat().st_size
        assert path.stat().st_blocks * 512 <= HEADS[0] + 4096


def discovered(found, root):
    return [(s.place, [f.relative_to(root).as_posix() for f in s.files], s.series, s.problem) for s in found.sources]


def test_dicom_headers_of_any_length_are_found(s3, tmp_path):
    folder = tmp_path / "in"
    dicom(folder / "a" / "plain", 1)
    dicom(folder / "a" / "implicit", 2, implicit=True)
    dicom(folder / "b" / "long.dcm", 3, private=HEADS[0])
    dicom(folder / "b" / "longer.dcm", 4, private=HEADS[1], icon=True)
    dicom(folder / "c" / "icon.dcm", 5, icon=True)
    dicom(folder / "c" / "cut.dcm", 6)
    data = (folder / "c" / "cut.dcm").read_bytes()
    (folder / "c" / "cut.dcm").write_bytes(data[:100])
    with Mirrors([s3.upload(folder)], private_of(tmp_path / "store")) as mirrors:
        there = discover(mirrors.roots)
    here = discover([folder])
    assert discovered(there, mirrors.roots[0]) == discovered(here, folder)
    assert there.counts == here.counts
    held = {p.name: p.stat().st_blocks * 512 for p in mirrors.roots[0].rglob("*") if p.is_file()}
    assert held["plain"] <= HEADS[0] + 4096
    assert held["implicit"] <= HEADS[0] + 4096
    assert held["long.dcm"] > HEADS[0]


@pytest.mark.parametrize("change", ["gone", "cut", "changed"])
def test_objects_that_are_not_as_listed_land_in_the_ledger_and_are_read_later(s3, tmp_path, monkeypatch, change):
    for number in range(3):
        nifti(tmp_path / "in" / f"s{number}.nii", number)
    url, system = s3.upload(tmp_path / "in"), s3.file_system()
    name = f"{inside(url)}/s1.nii"
    data, real = system.cat_file(name), mirror._Mirror.refresh

    def refresh(self):
        found = real(self)
        if change == "gone":
            system.rm_file(name)
        else:
            system.pipe_file(name, data[:-500] if change == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(mirror._Mirror, "refresh", refresh)
        counts = ingest([url], tmp_path / "store", SMALL)
    assert (counts.found, counts.accepted, counts.rejected) == (3, 2, 1)
    rows = [json.loads(line) for line in (tmp_path / "store" / "ledger.jsonl").read_text().splitlines()]
    assert [(row["rule"], row["reason"]) for row in rows if row["status"] == "rejected"] == [reading.LOST]
    assert "s1" not in json.dumps(rows)
    system.pipe_file(name, data)
    assert ingest([url], tmp_path / "store", SMALL).accepted == 3


def test_an_object_that_changed_is_read_again_and_one_that_went_is_left_out(s3, tmp_path):
    for number in range(2):
        nifti(tmp_path / "in" / f"s{number}.nii", number)
    nifti(tmp_path / "other.nii", 7)
    url, system = s3.upload(tmp_path / "in"), s3.file_system()
    ingest([url], tmp_path / "store", SMALL)
    before = {path.name for path in (tmp_path / "store").glob("*") if len(path.name) == 16}
    system.pipe_file(f"{inside(url)}/s1.nii", (tmp_path / "other.nii").read_bytes())  # of the same size
    assert ingest([url], tmp_path / "store", SMALL).accepted == 2
    after = {path.name for path in (tmp_path / "store").glob("*") if len(path.name) == 16}
    assert len(before & after) == 1
    assert len(after) == 2
    system.rm_file(f"{inside(url)}/s0.nii")
    assert ingest([url], tmp_path / "store", SMALL).found == 1


@pytest.mark.parametrize("name", ["a//b.nii", "a/../../b.nii", "./b.nii", "s0.nii/below.nii"])
def test_names_that_no_file_can_have_are_counted_and_leave_the_tree_alone(s3, tmp_path, monkeypatch, name):
    nifti(tmp_path / "in" / "s0.nii", 0)
    nifti(tmp_path / "in" / "s1.nii", 1)
    url = s3.upload(tmp_path / "in")
    real = mirror.RemoteFolder.stamps
    # As a service may list it; clients and this server fold such keys.
    monkeypatch.setattr(mirror.RemoteFolder, "stamps", lambda self: [*(own := list(real(self))), (name, own[0][1])])
    counts = ingest([url], tmp_path / "store", SMALL)
    assert counts.files["unusable_names"] == 1
    files = {p.name for p in private_of(tmp_path / "store").glob("mirror/**/*.nii") if p.is_file()}
    assert files == ({"s1.nii", "below.nii"} if "s0" in name else {"s0.nii", "s1.nii"})


def test_a_server_that_goes_away_ends_the_run_with_one_line_and_it_goes_on(s3, calm, scans, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    s3fs.S3FileSystem.clear_instance_cache()
    store, real, seen = with_key_of(calm / "store", tmp_path / "store"), reading.Reading._read, []

    def shutting(self, job, now):
        seen.append(job.key)
        if len(seen) == 3:
            s3.gate.shut()
        return real(self, job, now)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(reading.Reading, "_read", shutting)
            with pytest.raises(StorageError, match="must answer") as error:
                ingest([scans], store, SMALL)
            assert not [word for word in ("bucket", "127.0.0.1", "secret", ".nii") if word in str(error.value)]
            with pytest.raises(StorageError, match="must answer"):
                ingest([scans], store, SMALL)  # not even its listing
    finally:
        s3.gate.open(s3.port)
        s3fs.S3FileSystem.clear_instance_cache()
    ingest([scans], store, SMALL)
    assert bytes_of(store) == bytes_of(calm / "store")


KILLED = """
import os, signal, sys
from pathlib import Path
from voxscale.remote import RemoteFolder
from data_prep.__main__ import main

left, fetch = int(sys.argv[1]), RemoteFolder.fetch

def counted(self, name, target):
    global left
    left -= 1
    if left == 0:
        target.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return fetch(self, name, target)

RemoteFolder.fetch = counted
main(["ingest", *sys.argv[2:], "--workers", "2"])
"""


@pytest.mark.slow
def test_killed_while_fetching_it_goes_on_and_ends_with_the_same_bytes(calm, scans, tmp_path):
    store = with_key_of(calm / "store", tmp_path / "store")
    for fetches in (1, 6):
        command = [sys.executable, "-c", KILLED, str(fetches), f"s3://{inside(scans)}", str(store)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
        assert list(private_of(store).glob("mirror/.copies*"))
    ingest([scans], store, SMALL)
    assert bytes_of(store) == bytes_of(calm / "store")
    assert not list(private_of(store).glob("mirror/.copies*"))


def test_wrong_urls_are_refused(s3, scans, calm, tmp_path, capsys):
    with pytest.raises(ConfigError, match="at least one object"):
        ingest([s3.folder()], tmp_path / "store", SMALL)
    with pytest.raises(ConfigError, match="none holds another"):
        ingest([scans, Path(f"{scans}/task")], tmp_path / "store", SMALL)
    for wrong in (scans, scans / "task" / "store"):
        with pytest.raises(ConfigError, match="store must be a folder outside the sources"):
            ingest([scans], wrong, SMALL)
    for wrong in ("s3://bucket", "s3://bucket/store?version=1"):
        with pytest.raises(ConfigError, match="store must be a folder of a bucket"):
            ingest([calm / "in"], Path(wrong), SMALL)
    with pytest.raises(ConfigError, match="of a kind that fsspec can open"):
        ingest([Path("nosuch://bucket/folder")], tmp_path / "store", SMALL)
    with pytest.raises(SystemExit):
        main(["ingest", "s3://key:secret-word@bucket"])
    assert "secret-word" not in "".join(capsys.readouterr())
