"""What a tar is written with, and members that are not what the index says, in folders made to fit throughout."""

import dataclasses
import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from tests_stores import make_store
from webdataset import utils
from webdataset.autodecode import basichandlers
from webdataset.gopen import gopen
from webdataset.tariterators import tar_file_iterator

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from voxscale.config import to_dict
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.shard_reader import ShardReader
from voxscale.shards import index_name, manifest_text, open_manifest

STRIDES = ((2, 2, 2), *((1, 1, 1),) * 4)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "enforce_security", False)  # as if somebody had imported it before
    monkeypatch.setenv("WDS_SECURE", "0")
    make_store(tmp_path / "store", 1, labelled=False, shape=(20, 20, 20))
    config = PackConfig(factor=1.25, shard_mb=1)
    pack(tmp_path / "store", tmp_path / "shards", InputContract(spacing=(2.0, 2.0, 2.0)), (8, 8, 8), STRIDES, config)
    return tmp_path / "shards"


def test_webdataset_is_secure_wherever_it_was_imported(shards, tmp_path):
    assert os.environ["WDS_SECURE"] == "1"
    assert utils.enforce_security
    with pytest.raises(ValueError, match="cannot open pipe"):
        gopen(f"pipe:touch {tmp_path / 'made'}")
    with pytest.raises(ValueError, match="Unpickling is not allowed"):
        basichandlers("pyd", b"cos\nsystem\n(S'true'\ntR.")
    assert not (tmp_path / "made").exists()
    with (shards / "shard-00000.tar").open("rb") as handle:
        assert len(list(tar_file_iterator(handle))) == 2 * open_manifest(shards).samples


def test_members_tell_no_time_and_no_owner_and_the_manifest_has_the_hashes_of_all_files(shards):
    manifest = open_manifest(shards)
    for line in manifest.shards:
        with tarfile.open(shards / line.name) as tar:
            members = list(tar)
        assert {(m.mtime, m.uname, m.gname, m.isreg()) for m in members} == {(0, "", "", True)}
        data, index = ((shards / name).read_bytes() for name in (line.name, index_name(line.name)))
        assert line.sha256 == hashlib.sha256(data).hexdigest()
        assert line.index_sha256 == hashlib.sha256(index).hexdigest()
        assert (line.bytes, line.samples) == (len(data), len(members) // 2)
    assert manifest.samples == sum(line.samples for line in manifest.shards)
    assert sum(manifest.subjects.values()) == manifest.volumes == 1


def forged(shards: Path, change) -> ShardReader:
    """A reader of shards whose first brick says something else, with every checksum and hash made anew."""
    manifest = open_manifest(shards)
    line = manifest.shards[0]
    tar = shards / line.name
    data, index = bytearray(tar.read_bytes()), ShardReader(shards, manifest).index(line.name)
    sample = change(data, index.samples[0])
    start, end = sample.span
    rest = google_crc32c.value(bytes(data[start : sample.voxels[0]]))
    rest = google_crc32c.extend(rest, bytes(data[sum(sample.voxels) : end]))
    sample = dataclasses.replace(sample, crc32c=rest)
    tar.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    index = dataclasses.replace(index, samples=(sample, *index.samples[1:]), sha256=sha256)
    text = (json.dumps(to_dict(index), indent=1) + "\n").encode()
    (shards / index_name(line.name)).write_bytes(text)
    line = dataclasses.replace(line, sha256=sha256, index_sha256=hashlib.sha256(text).hexdigest())
    (shards / "manifest.json").write_bytes(
        manifest_text(dataclasses.replace(manifest, shards=(line, *manifest.shards[1:])))
    )
    return ShardReader(shards, open_manifest(shards))


def header(name, **more):
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def in_folder(name, size):
    """As tars keep names that are too long for one field."""
    made = bytearray(header(name, size=size))
    made[345:350] = b"../..".ljust(5, b"\0")
    made[148:156] = b" " * 8
    made[148:156] = f"{sum(made):06o}\0 ".encode()
    assert tarfile.TarInfo.frombuf(bytes(made), "utf-8", "strict").name == f"../../{name}"
    return bytes(made)


def with_header(make):
    def change(data, sample):
        name = f"{sample.key}.shard"
        at = sample.voxels[0] - 512
        assert bytes(data[at : at + len(name)]) == name.encode()
        data[at : at + 512] = make(name, sample.voxels[1])
        return sample

    return change


@pytest.mark.parametrize(
    "make",
    [
        lambda name, size: header(f"../../{name}", size=size),
        lambda name, size: header(f"/etc/{name}", size=size),
        lambda name, size: header(name, size=size, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        lambda name, size: header(name, size=size, type=tarfile.LNKTYPE, linkname=name),
        lambda name, size: header(name, size=size, type=tarfile.CHRTYPE),
        in_folder,
    ],
    ids=["dots", "absolute", "symbolic link", "hard link", "device", "folder"],
)
def test_members_that_are_not_plain_files_of_the_index_are_refused(shards, make):
    reader = forged(shards, with_header(make))
    name = reader.manifest.shards[0].name
    with pytest.raises(DataError) as error:
        reader.open(name, reader.index(name).samples[0])
    assert error.value.reason == "corrupt"


@pytest.mark.parametrize(("field", "value"), [("chunk", b"0"), ("shape", b"-1"), ("dtype", b'"O"'), ("dtype", b"7")])
def test_shapes_and_number_types_that_are_none_are_refused(shards, field, value):
    def change(data, sample):
        start, length = sample.json
        meta = bytes(data[start : start + length])
        pattern = rb'("dtype": )("\w+")' if field == "dtype" else rf'("{field}": \[)(\d+)'.encode()
        data[start : start + length] = re.sub(pattern, lambda m: m[1] + value.rjust(len(m[2])), meta)
        assert len(data[start : start + length]) == length
        return sample

    reader = forged(shards, change)
    name = reader.manifest.shards[0].name
    with pytest.raises(DataError) as error:
        reader.open(name, reader.index(name).samples[0])
    assert error.value.reason == "corrupt"


def test_what_is_forged_without_harm_is_read(shards):
    """So it is the header that is refused above, and nothing that the forging broke."""
    reader = forged(shards, with_header(lambda name, size: header(name, size=size)))
    name = reader.manifest.shards[0].name
    (voxels,) = reader.open(name, reader.index(name).samples[0]).read()
    assert np.ptp(voxels)


@pytest.mark.parametrize("key", ["../../etc/passwd", "/root", "a/b", "", "0" * 65, "..", "x y"])
def test_names_that_are_no_keys_are_refused(shards, key):
    reader = forged(shards, lambda _, sample: dataclasses.replace(sample, key=key))
    with pytest.raises(DataError, match="must name bricks") as error:
        reader.index(reader.manifest.shards[0].name)
    assert error.value.reason == "corrupt"


def test_places_outside_of_the_tar_are_refused(shards):
    reader = forged(shards, lambda data, sample: dataclasses.replace(sample, span=(sample.span[0], len(data) + 512)))
    with pytest.raises(DataError, match="places inside the tar"):
        reader.index(reader.manifest.shards[0].name)
