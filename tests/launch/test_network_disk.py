"""Workers of two clients on a real network file system (SSHFS over loopback): what one writes the other sees late.

Skipped where there is no sshd, no sshfs or no right to mount.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from warm_python import run, start

from data_prep.config import IngestConfig
from data_prep.ingest import ingest
from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from voxscale.config import save_json
from voxscale.contract import InputContract

SSHD = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
SETTINGS = """ListenAddress 127.0.0.1
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile {folder}/pid
StrictModes no
PermitRootLogin yes
UsePAM no
Subsystem sftp internal-sftp
"""
SMALL = IngestConfig(workers=1, gigabytes=4.0)
pytestmark = pytest.mark.slow()


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A folder, and two mounts of it that know nothing of each other."""
    if SSHD is None or shutil.which("sshfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("there is no network file system to be had")
    folder = tmp_path_factory.mktemp("disk")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    (folder / "config").write_text(SETTINGS.format(folder=folder))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-p", str(port), "-f", folder / "config"], stderr=subprocess.DEVNULL)
    mounts = [folder / "first", folder / "second"]
    try:
        (folder / "there").mkdir()
        until(lambda: answers(port))
        for mount in mounts:
            mount.mkdir()
            options = f"IdentityFile={folder}/key,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
            done = subprocess.run(
                ["sshfs", "-p", str(port), "-o", options, f"127.0.0.1:{folder}/there", mount], check=False
            )
            if done.returncode:
                pytest.skip("nothing can be mounted here")
        yield folder / "there", *mounts
    finally:
        for mount in mounts:
            subprocess.run(["fusermount", "-u", "-z", mount], check=False, stderr=subprocess.DEVNULL)
        server.terminate()
        server.wait()


def answers(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def scans(folder, count):
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(-1000, -900, (24, 26, 28)).astype(np.int16)
        values[4:20, 4:22, 4:24] += 1000
        nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(folder / f"s{number}.nii")
    return folder


def bytes_of(folder, *without):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not set(without) & set(path.parts)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def finish(*arguments):
    done = run(["-m", *arguments])
    assert done.returncode == 0, done.stderr


def kill_when(true, log, *arguments):
    """Start something and kill it as soon as something is true."""
    with log.open("w") as out:
        worker = start(["-m", *arguments], os.environ, out, out)
        try:
            until(true)
        finally:
            worker.kill()
            worker.wait()


def test_two_clients_of_which_one_is_killed_write_the_bytes_of_one_run(disk, tmp_path):
    there, first, second = disk
    source = scans(tmp_path / "in", 8)
    ingest([source], tmp_path / "store", SMALL)
    (there / "store.private").mkdir(mode=0o700)
    shutil.copy(tmp_path / "store.private" / "key", there / "store.private" / "key")
    limits = ["--workers", 1, "--gigabytes", 4]
    other = ["data_prep", "ingest", source, second / "store", *limits, "--part", "2/2"]
    kill_when(lambda: list((there / "store").glob("*/zarr.json")), tmp_path / "log", *other)
    for client, part in ((first, "1/2"), (second, "2/2")):
        finish("data_prep", "ingest", source, client / "store", *limits, "--part", part)
    finish("data_prep", "ingest", source, first / "store", *limits)
    assert bytes_of(there / "store", "parts") == bytes_of(tmp_path / "store", "parts")
    assert list((there / "store").glob(".*.tmp")) == []

    plan = plan_task(tmp_path / "store", 16**3, InputContract(spacing=(2.0, 2.0, 2.0)))
    save_json(plan, tmp_path / "plan.json")
    pack(tmp_path / "store", tmp_path / "shards", plan.contract, plan.patch, plan.strides, PackConfig())
    for client, part in ((first, ["--part", "1/2"]), (second, ["--part", "2/2"]), (second, [])):
        finish("data_prep", "pack", client / "store", client / "shards", "--plan", tmp_path / "plan.json", *part)
    assert bytes_of(there / "shards", ".parts") == bytes_of(tmp_path / "shards", ".parts")

    train(tmp_path / "shards", tmp_path / "run")
    first_save = training(first / "shards", first / "run")
    kill_when(lambda: list((there / "run").glob("checkpoints/step-*")), tmp_path / "log", *first_save)
    train(second / "shards", second / "run")
    assert losses(there / "run") == losses(tmp_path / "run")
    assert len(losses(there / "run")) == 8


def training(shards, folder):
    loop = ["--loop.steps", 8, "--loop.batch", 2, "--loop.log-every", 1, "--loop.checkpoint-every", 2]
    blocks = ["--objective.volume-fusion.block-max", 12, 12, 12, "--objective.volume-fusion.block-min", 4, 4, 4]
    return ["pretrain", "configs/pretrain.py:demo", "--shards", shards, "--run", folder, *loop, *blocks]


def train(shards, folder):
    finish(*training(shards, folder))


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]
