"""Stores behind `s3://` URLs, written by ingest: object by object those of the same ingest into a folder."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from ingested import SMALL, bytes_of, nifti, sources, with_key_of
from object_store import inside, requests

from data_prep import home, reading
from data_prep.__main__ import main
from data_prep.ingest import ingest, ingest_part
from data_prep.part import Part
from data_prep.report import write_report
from voxscale.errors import DataError, StorageError
from voxscale.ledger import lines
from voxscale.store import open_store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Files in a folder and the store of one undisturbed run on them, in a folder too."""
    folder = tmp_path_factory.mktemp("calm")
    sources(folder / "in" / "some")
    nifti(folder / "in" / "task" / "images" / "a.nii.gz", 30)
    (folder / "in" / "task" / "labels").mkdir()
    label = np.zeros((12, 14, 16), np.uint8)
    label[4:8, 4:8, 5:9] = 1
    nibabel.Nifti1Image(label, np.diag([2.0, 2.0, 3.0, 1.0])).to_filename(folder / "in/task/labels/a.nii.gz")
    ingest([folder / "in"], folder / "store", SMALL)
    return folder


def files_of(store):
    return {name: data for name, data in bytes_of(store).items() if data is not None and name != ".lock"}


def private_of(url):
    return Path(f"{url}.private")


def empty(s3, calm):
    """A URL for a store, with the key of the calm one."""
    url = s3.folder()
    s3.file_system().pipe_file(f"{inside(private_of(url))}/key", (calm / "store.private" / "key").read_bytes())
    return url


def same(s3, url, calm, store="store"):
    assert s3.objects(url) == files_of(calm / store)
    mine, theirs = (
        sorted(json.loads(line)["path"] for line in data.splitlines())
        for data in (
            s3.objects(private_of(url))["sources.jsonl"], (calm / f"{store}.private" / "sources.jsonl").read_bytes()
        )
    )  # fmt: skip
    assert mine == theirs
    assert set(s3.objects(private_of(url))) == {"key", "sources.jsonl"}


def counted(monkeypatch):
    read, real = [], reading.Reading._read
    monkeypatch.setattr(reading.Reading, "_read", lambda self, job, now: read.append(job.key) or real(self, job, now))
    return read


@pytest.mark.parametrize("parts", [0, 2])
def test_a_store_behind_a_url_is_that_in_a_folder(s3, calm, tmp_path, monkeypatch, parts):
    url = empty(s3, calm)
    for number in range(parts):
        ingest_part([calm / "in"], url, SMALL, Part(number + 1, parts), tmp_path / f"work{number}")
    read = counted(monkeypatch)
    ingest([calm / "in"], url, SMALL, tmp_path / "work")
    assert len(read) == len(set(read)) == (0 if parts else 12)
    same(s3, url, calm)
    assert not list((tmp_path / "work").glob("*/.run*"))
    with requests() as made:
        read.clear()
        ingest([calm / "in"], url, SMALL, tmp_path / "other")  # of another machine
    assert read == []
    assert {method for method, _, _ in made}.isdisjoint({"put_object", "delete_object", "delete_objects"})


def test_both_sources_and_store_behind_urls_and_scans_that_are_added(s3, calm, tmp_path, monkeypatch):
    for number in range(2):
        nifti(tmp_path / "in" / f"s{number}.nii", number)
    scans, url = s3.upload(tmp_path / "in"), s3.folder()
    ingest([scans], url, SMALL, tmp_path / "work")
    before, system = s3.objects(url), s3.file_system()
    nifti(tmp_path / "in" / "s2.nii", 2)
    system.put_file(str(tmp_path / "in" / "s2.nii"), f"{inside(scans)}/s2.nii")
    read = counted(monkeypatch)
    with requests() as made:
        assert ingest([scans], url, SMALL, tmp_path / "work").accepted == 3
    assert len(read) == 1
    old = [key for method, key, _ in made if method == "put_object" and any(name[:16] in key for name in before if
           len(name.split("/")[0]) == 16)]  # fmt: skip
    assert old == []
    assert len(open_store(url).entries) == 3
    system.rm_file(f"{inside(scans)}/s2.nii")
    (tmp_path / "in" / "s2.nii").unlink()
    assert ingest([scans], url, SMALL, tmp_path / "work").found == 2


def test_a_changed_setting_leaves_no_object_of_before(s3, calm, tmp_path, monkeypatch):
    url = empty(s3, calm)
    other = dataclasses.replace(SMALL, labels="ignore", volumes=3, dataset="other")
    ingest([calm / "in"], url, SMALL, tmp_path / "work")
    ingest([calm / "in"], url, other, tmp_path / "work")
    ingest([calm / "in"], with_key_of(calm / "store", calm / "second"), SMALL)
    counts = ingest([calm / "in"], calm / "second", other)
    assert counts.accepted
    names = {name for name in s3.objects(url) if name[:16].isalnum()}
    assert names == {name for name in files_of(calm / "second") if name[:16].isalnum()}
    read = counted(monkeypatch)
    ingest([calm / "in"], url, other, tmp_path / "work")
    assert read == []


KILLED = """
import os, signal, sys
from voxscale.remote import RemoteFolder
from data_prep.__main__ import main

left = int(sys.argv[1])

def ending(real):
    def counted(self, *args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args)
    return counted

for name in ("write", "put", "put_some", "create", "remove", "drop"):
    setattr(RemoteFolder, name, ending(getattr(RemoteFolder, name)))
main(["ingest", *sys.argv[2:], "--workers", "2"])
"""


@pytest.mark.slow
def test_killed_before_any_upload_it_goes_on_and_ends_with_the_same_objects(s3, calm, tmp_path, monkeypatch):
    url, rounds, finished = empty(s3, calm), 0, set()
    for upload in (1, 4, 9, 17, 26, 33, 9, 5):
        command = [sys.executable, "-c", KILLED, str(upload), str(calm / "in"), f"s3://{inside(url)}"]
        command += ["--work", str(tmp_path / f"work{rounds % 2}")]  # now on one machine, now on another
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True).returncode
        logs = [data for name, data in s3.objects(url).items() if name.startswith("parts/")]
        ended = [row["id"] for data in logs for row in map(json.loads, data.splitlines()) if "row" in row]
        assert len(ended) == len(set(ended))  # nothing that was finished is done twice
        assert finished <= set(ended) or not logs or "ledger.jsonl" in s3.objects(url)
        finished |= set(ended)
        rounds += 1
        if done != -signal.SIGKILL:
            break
    assert rounds >= 6
    read = counted(monkeypatch)
    ingest([calm / "in"], url, SMALL, tmp_path / "work0")
    assert finished.isdisjoint(read)
    same(s3, url, calm)


def test_two_that_gather_at_once_are_noticed(s3, calm, tmp_path, monkeypatch):
    url, real = empty(s3, calm), home.RemoteHome.settle

    def late(self, changed):
        s3.file_system().pipe_file(f"{inside(url)}/ledger.jsonl", b"{}")
        real(self, changed)

    monkeypatch.setattr(home.RemoteHome, "settle", late)
    with pytest.raises(DataError, match="one run at a time"):
        ingest([calm / "in"], url, SMALL, tmp_path / "work")


def test_workers_that_make_the_key_at_once_have_one(s3, tmp_path):
    url = s3.folder()
    with home.RemoteHome(url, tmp_path / "a") as one, home.RemoteHome(url, tmp_path / "b") as two:
        real = one._secret.create
        one._secret.create = lambda name, data: (two.open(), real(name, data))[1]
        one.open()
        assert (one.private / "key").read_bytes() == (two.private / "key").read_bytes()
        assert (one.private / "key").stat().st_mode & 0o77 == 0


def test_a_server_that_refuses_ends_the_run_with_one_line(s3, calm, tmp_path, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    url, real = empty(s3, calm), home.RemoteHome.take

    def shutting(self, key):
        s3.gate.shut()
        real(self, key)

    try:
        monkeypatch.setattr(home.RemoteHome, "take", shutting)
        with pytest.raises(StorageError, match="must answer") as error:
            ingest([calm / "in"], url, SMALL, tmp_path / "work")
        assert not [word for word in ("bucket", "127.0.0.1", "secret", ".nii") if word in str(error.value)]
    finally:
        s3.gate.open(s3.port)
        s3fs.S3FileSystem.clear_instance_cache()


def test_every_command_takes_a_url(s3, calm, tmp_path, capsys):
    url = empty(s3, calm)
    ingest([calm / "in"], url, SMALL, tmp_path / "work")
    store = f"s3://{inside(url)}"
    assert main(["verify", store]) == 0
    assert main(["plan", store, "--budget-voxels", "512", "--out", str(tmp_path / "plan.json")]) == 0
    assert open_store(url).contract is not None
    assert main(["audit", store, "--against", str(calm / "store")]) == 3
    assert main(["audit", str(calm / "store"), "--against", store]) == 3
    assert json.loads(s3.objects(url)["audit.json"]) == json.loads((calm / "store" / "audit.json").read_text())
    nifti(tmp_path / "own" / "x.nii.gz", 77, (12, 14, 18))
    nifti(tmp_path / "own" / "good.nii.gz", 0)
    ingest([tmp_path / "own"], tmp_path / "task", SMALL)
    shards, pack = f"s3://{inside(s3.folder())}", ["--plan", str(tmp_path / "plan.json"), "--foreground", "0"]
    capsys.readouterr()
    assert main(["pack", store, shards, *pack, "--exclude", str(tmp_path / "task")]) == 0
    some = json.loads(capsys.readouterr().out)
    assert some["in_task"] >= 1
    assert main(["pack", str(tmp_path / "task"), f"{shards}-2", *pack, "--exclude", store]) == 0
    assert json.loads(capsys.readouterr().out)["in_task"] >= 1
    page = write_report(url, Path(shards))
    assert str(page) == str(url / "report" / "index.html")
    local = write_report(calm / "store", Path(shards), tmp_path / "page.html")
    assert s3.objects(url)["report/index.html"] == local.read_bytes()


def test_a_ledger_is_read_in_pieces_as_a_whole(s3, calm, monkeypatch):
    url = s3.upload(calm / "store")
    for piece in (500, 4096, len((calm / "store" / "ledger.jsonl").read_bytes()), 1 << 24):
        monkeypatch.setattr("voxscale.ledger.PIECE", piece)
        assert list(lines(url)) == list(lines(calm / "store"))
    assert list(lines(s3.folder())) == []
