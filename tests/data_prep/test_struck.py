"""SIGKILL before each single call that makes something last: a second run ends with the bytes of an undisturbed one."""

import os
import shutil
import signal
from dataclasses import replace
from multiprocessing.forkserver import _forkserver

import pytest
from ingested import SMALL, bytes_of, nifti
from tests_stores import make_store

from data_prep.bricks import PackConfig
from data_prep.ingest import ingest
from data_prep.pack import pack
from data_prep.verify import verify_shards
from voxscale.contract import InputContract
from voxscale.shards import open_manifest

LASTING = ("fsync", "replace", "rename", "unlink", "rmdir", "truncate", "link")
CUT = PackConfig(factor=1.25, shard_mb=2, holdout=0.3)
pytestmark = pytest.mark.slow()


def is_struck(calls, run):
    """Run something in a fork that is killed in place of a call; whether it came to that."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 2)
        waitpid, left = os.waitpid, [calls]
        # The server of reader processes is its parent's child, and lives.
        os.waitpid = lambda pid, how: (0, 0) if pid == _forkserver._forkserver_pid else waitpid(pid, how)

        def counted(real):
            def call(*args, **more):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            return call

        for name in LASTING:
            setattr(os, name, counted(getattr(os, name)))
        try:
            run()
            os._exit(0)
        except BaseException:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_ingest_of_more_scans_under_another_setting(tmp_path):
    """A scan is new, one gone, one moved; all are of another data set now, so all rows and parts change."""
    source, settings = tmp_path / "in", replace(SMALL, workers=1)
    for number in range(3):
        nifti(source / f"a{number}.nii", number)
    ingest([source], tmp_path / "before", settings)
    nifti(source / "b.nii", 7)
    (source / "a1.nii").unlink()
    (source / "a2.nii").rename(source / "moved.nii")

    def begin(name):
        for end in ("", ".private"):
            shutil.rmtree(tmp_path / f"{name}{end}", ignore_errors=True)
            shutil.copytree(tmp_path / f"before{end}", tmp_path / f"{name}{end}")
        return tmp_path / name

    def run(store):
        return ingest([source], store, replace(settings, dataset="two"))

    assert run(begin("calm")).accepted == 3
    calls = 0
    while begin("store") and is_struck(calls, lambda: run(tmp_path / "store")):
        run(tmp_path / "store")
        assert bytes_of(tmp_path / "store") == bytes_of(tmp_path / "calm"), calls
        calls += 1
    assert calls > 30


@pytest.mark.parametrize("over", [False, True], ids=["anew", "over others"])
def test_pack(tmp_path, over):
    make_store(tmp_path / "store", 4, labelled=False, shape=(70, 60, 66))

    def run(name, cut=CUT):
        strides = ((2, 2, 2), *((1, 1, 1),) * 4)
        contract = InputContract(spacing=(2.0, 2.0, 2.0))
        return pack(tmp_path / "store", tmp_path / name, contract, (8, 8, 8), strides, cut)

    manifest, calls, shards = run("calm"), 0, tmp_path / "shards"
    run("before", replace(CUT, shard_mb=1, holdout=0.0))

    def begin():
        shutil.rmtree(shards, ignore_errors=True)
        if over:
            shutil.copytree(tmp_path / "before", shards)
        return True

    while begin() and is_struck(calls, lambda: run("shards")):
        if (shards / "manifest.json").exists() and open_manifest(shards) == manifest:
            assert not verify_shards(shards, 1)[1]  # it is there once all that it names is
        assert run("shards") == manifest
        assert bytes_of(shards) == bytes_of(tmp_path / "calm"), calls
        calls += 1
    assert calls > 20
