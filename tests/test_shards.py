import json
import shutil

import numpy as np
import pytest
import webdataset as wds
import zarr
from tests_stores import make_store
from zarr.codecs import BloscCodec, Crc32cCodec

from data_prep.bricks import PackConfig, body_share, brick_boxes, tile
from data_prep.pack import pack
from data_prep.part import Part, parse_part
from voxscale.contract import InputContract
from voxscale.errors import ConfigError, DataError
from voxscale.shard_reader import ShardReader
from voxscale.shards import open_manifest
from voxscale.store import open_store

CONTRACT = InputContract(spacing=(2.0, 2.0, 2.0))
PATCH = (8, 8, 8)
STRIDES = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
SMALL = PackConfig(factor=1.25, shard_mb=1)
SHAPE = (70, 60, 66)


def packed(tmp_path, config=SMALL, count=4):
    make_store(tmp_path / "store", count, labelled=False, shape=SHAPE)
    return pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, config)


def open_all(folder):
    manifest = open_manifest(folder)
    reader = ShardReader(folder, manifest)
    return reader, [reader.index(line.name) for line in manifest.shards]


def everything(folder):
    reader, indexes = open_all(folder)
    opened = [(reader.open(i.name, s), s) for i in indexes for s in i.samples]
    return reader.manifest, [((brick.info, brick.read()[0]), s) for brick, s in opened]


@pytest.mark.parametrize(("length", "edge", "overlap"), [(10, 10, 0.0), (10, 4, 0.0), (100, 17, 0.25), (5, 9, 0.5)])
def test_tiles_cover_a_length_evenly(length, edge, overlap):
    starts = tile(length, edge, overlap)
    covered = {i for s in starts for i in range(s, min(s + edge, length))}
    assert covered == set(range(length))
    assert starts[0] == 0
    assert edge >= length or starts[-1] + edge == length
    steps = np.diff(starts)
    assert not len(steps) or steps.max() <= np.ceil(edge * (1 - overlap))


def test_bricks_are_the_scan_at_the_place_they_name(tmp_path):
    manifest, bricks = everything_of(tmp_path)
    store = open_store(tmp_path / "store")
    assert manifest.samples == len(bricks) > 4
    assert manifest.volumes == 4
    seen = np.zeros(store.entries[bricks[0][0][0].volume].shape, dtype=bool)
    for (info, voxels), _ in bricks:
        z, y, x = (slice(a, a + n) for a, n in zip(info.start, info.shape, strict=True))
        np.testing.assert_array_equal(voxels, store.read(info.volume)[z, y, x])
        assert voxels.dtype == np.int16
        corner = np.asarray(store.entries[info.volume].affine) @ [*info.start, 1]
        np.testing.assert_allclose(np.asarray(info.affine)[:, 3], corner)
        seen[z, y, x] = True
    body = store.entries[bricks[0][0][0].volume].foreground_box
    assert seen[tuple(slice(a, b) for a, b in body)].mean() > 0.9


def everything_of(tmp_path):
    packed(tmp_path)
    return everything(tmp_path / "shards")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_zarr_read_the_same(tmp_path):
    """A brick's member is a Zarr v3 shard: zarr-python reads it as `c/0/0/0` of an array of one shard."""
    _, bricks = everything_of(tmp_path)
    urls = sorted(str(p) for p in (tmp_path / "shards").glob("*.tar"))
    found = {s["__key__"]: s for s in wds.WebDataset(urls, shardshuffle=False, empty_check=False)}
    assert found.keys() == {s.key for _, s in bricks}
    for (info, voxels), sample in bricks:
        meta = json.loads(found[sample.key]["json"])
        assert meta["volume"] == info.volume
        (tmp_path / "array" / "c" / "0" / "0").mkdir(parents=True, exist_ok=True)
        shard = [-(-n // c) * c for n, c in zip(meta["shape"], meta["chunk"], strict=True)]
        array = zarr.create_array(
            store=tmp_path / "array",
            shape=meta["shape"],
            dtype=meta["dtype"],
            chunks=meta["chunk"],
            shards=shard,
            compressors=[BloscCodec(cname="lz4hc", typesize=2), Crc32cCodec()],
            overwrite=True,
        )
        (tmp_path / "array" / "c" / "0" / "0").mkdir(parents=True)
        (tmp_path / "array" / "c" / "0" / "0" / "0").write_bytes(found[sample.key]["shard"])
        np.testing.assert_array_equal(array[...], voxels)


def test_second_run_writes_the_same_bytes_and_touches_no_finished_tar(tmp_path):
    first = packed(tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("shard-*")}
    again = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    assert again == first
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("shard-*")}
    other = pack(tmp_path / "store", tmp_path / "elsewhere", CONTRACT, PATCH, STRIDES, SMALL)
    assert other == first  # sha256 of every tar included


def test_cut_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    first = packed(tmp_path)
    (tmp_path / "shards" / "manifest.json").unlink()
    (tmp_path / "shards" / "shard-00000.index.json").unlink()  # killed between tar and index
    (tmp_path / "shards" / ".shard-00000.tar.tmp").write_bytes(b"half")
    with pytest.raises(DataError, match="run data_prep pack to the end"):
        open_manifest(tmp_path / "shards")
    assert pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL) == first


def test_other_config_replaces_the_shards(tmp_path):
    first = packed(tmp_path)
    wider = PackConfig(factor=2.0, shard_mb=1)
    second = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, wider)
    assert second.config_hash != first.config_hash
    assert second.shards != first.shards


def test_every_part_of_a_brick_is_checked(tmp_path):
    packed(tmp_path)
    folder = tmp_path / "shards"
    reader, indexes = open_all(folder)
    sample, tar = indexes[0].samples[1], folder / indexes[0].name
    whole = tar.read_bytes()
    for start, size in (sample.json, sample.voxels):
        for place in np.linspace(start, start + size - 1, 40).astype(int):
            tar.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
            with pytest.raises(DataError) as error:
                ShardReader(folder, reader.manifest).open(indexes[0].name, sample).read()
            assert error.value.reason == "corrupt"
    tar.write_bytes(whole)
    assert ShardReader(folder, reader.manifest).open(indexes[0].name, sample).read()[0].size


def test_a_cut_or_missing_tar_and_a_changed_index_are_noticed(tmp_path):
    packed(tmp_path)
    folder = tmp_path / "shards"
    reader, indexes = open_all(folder)
    index, sample = folder / "shard-00000.index.json", indexes[0].samples[0]
    text = index.read_text()
    values = json.loads(text)
    values["samples"] = values["samples"][:-1]
    index.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"shard-00000.tar must have the index that the manifest says"):
        ShardReader(folder, reader.manifest).index("shard-00000.tar")
    index.unlink()
    with pytest.raises(DataError, match=r"shard-00000.tar must have the index that the manifest says"):
        ShardReader(folder, reader.manifest).index("shard-00000.tar")
    tar = folder / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-00000.tar must be as the manifest says"):
        ShardReader(folder, reader.manifest).open("shard-00000.tar", sample)
    tar.unlink()
    with pytest.raises(DataError, match=r"shard-00000.tar must be as the manifest says"):
        ShardReader(folder, reader.manifest).open("shard-00000.tar", sample)
    for text in ("", "{}", '{"schema_version": 1}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(DataError):
            open_manifest(folder)


def test_air_is_left_out_and_counted(tmp_path):
    whole = packed(tmp_path, PackConfig(factor=1.0, foreground=0.001, overlap=0.0))
    picky = pack(
        tmp_path / "store",
        tmp_path / "picky",
        CONTRACT,
        PATCH,
        STRIDES,
        PackConfig(factor=1.0, foreground=0.7, overlap=0.0),
    )
    assert picky.skipped_air > whole.skipped_air
    assert picky.samples + picky.skipped_air == whole.samples + whole.skipped_air


def test_nothing_but_air_is_refused(tmp_path):
    make_store(tmp_path / "store", 1, labelled=False)
    with pytest.raises(DataError, match="no brick shows that much body"):
        pack(tmp_path / "store", tmp_path / "shards", CONTRACT, (40, 40, 40), STRIDES, PackConfig(foreground=1.0))
    assert not (tmp_path / "shards" / "manifest.json").exists()


def test_empty_store_is_refused(tmp_path):
    make_store(tmp_path / "store", 0, labelled=False)
    with pytest.raises(DataError, match="at least one accepted volume"):
        pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)


def test_tars_are_closed_at_the_size_limit(tmp_path):
    make_store(tmp_path / "store", 3, labelled=False, shape=(90, 94, 96), spacing=(1.0, 1.0, 1.0))
    manifest = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, (16, 16, 16), STRIDES, PackConfig(shard_mb=1))
    assert len(manifest.shards) == 3  # one scan each
    assert all(shard.bytes < 3e6 for shard in manifest.shards)
    assert [p.name for p in (tmp_path / "shards").glob(".*.tmp")] == []


def test_parts_write_the_same_bytes_as_one(tmp_path):
    whole = packed(tmp_path, PackConfig(factor=1.25, shard_mb=1, holdout=0.3), count=7)
    config = PackConfig(factor=1.25, shard_mb=1, holdout=0.3)
    for number in (3, 1, 2):
        part = Part(number, 3)
        assert pack(tmp_path / "store", tmp_path / "parts", CONTRACT, PATCH, STRIDES, config, part=part) is None
        assert not (tmp_path / "parts" / "manifest.json").exists()
    tars = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.tar")}
    assert len(tars) == len(list((tmp_path / "shards").glob("*.tar")))
    assert pack(tmp_path / "store", tmp_path / "parts", CONTRACT, PATCH, STRIDES, config) == whole
    assert tars == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.tar")}
    for file in (tmp_path / "shards").glob("[!.]*"):
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes()


def test_scans_that_come_later_go_into_new_tars(tmp_path):
    first = packed(tmp_path)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "shards").glob("shard-*")}
    shutil.rmtree(tmp_path / "store")
    make_store(tmp_path / "store", 6, labelled=False, shape=SHAPE)
    second = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    assert second.volumes == first.volumes + 2
    assert second.shards[: len(first.shards)] == first.shards
    assert (
        before.items()
        <= {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "shards").glob("shard-*")}.items()
    )


def test_no_subject_is_in_both_splits_and_every_one_is_in_its_own(tmp_path):
    manifest = packed(tmp_path, PackConfig(factor=1.25, shard_mb=1, holdout=0.4), count=9)
    _, indexes = open_all(tmp_path / "shards")
    people = {"train": set(), "holdout": set()}
    for line, index in zip(manifest.shards, indexes, strict=True):
        people[line.split] |= {sample.subject for sample in index.samples}
    assert people["train"]
    assert people["holdout"]
    assert not people["train"] & people["holdout"]
    assert {split: len(found) for split, found in people.items()} == manifest.subjects
    assert sum(manifest.subjects.values()) == 9


def test_a_scan_that_cannot_be_read_is_counted_and_the_rest_goes_on(tmp_path):
    make_store(tmp_path / "store", 3, labelled=False, shape=SHAPE)
    broken = f"{1:016x}"
    shard = next(p for p in (tmp_path / "store" / broken / "0" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    manifest = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    assert manifest.lost == {broken: "corrupt"}
    assert manifest.volumes == 2
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("shard-*")}
    assert pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL) == manifest
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("shard-*")}
    data[100] ^= 1
    shard.write_bytes(data)  # as ingest does once the scan's folder was removed
    mended = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    assert (mended.lost, mended.volumes) == ({}, 3)
    assert mended == pack(tmp_path / "store", tmp_path / "anew", CONTRACT, PATCH, STRIDES, SMALL)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(ConfigError, match="part must be K/N"):
        parse_part(text)


def test_the_share_of_body_is_that_of_the_voxels():
    from voxscale.entry import Occupancy

    body = np.random.default_rng(0).random((100, 64, 40)) > 0.7
    occupancy = Occupancy.measure(body)
    for box in (((0, 32), (32, 64), (0, 40)), ((32, 96), (0, 64), (32, 40))):
        wanted = body[tuple(slice(a, b) for a, b in box)].mean()
        assert abs(body_share(occupancy, box, body.shape) - wanted) < 1 / 255


def test_bricks_never_leave_the_scan(tmp_path):
    make_store(tmp_path / "store", 1, labelled=False)
    entry = next(iter(open_store(tmp_path / "store").entries.values()))
    for box in brick_boxes(entry, (64, 8, 8), CONTRACT, PackConfig()):
        assert all(0 <= a < b <= n for (a, b), n in zip(box, entry.shape, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        {"factor": 0.5},
        {"factor": float("inf")},
        {"overlap": 1.0},
        {"foreground": 2.0},
        {"shard_mb": 0},
        {"holdout": 1.0},
    ],
)
def test_bad_config_is_refused(values):
    with pytest.raises(ConfigError, match="pack."):
        PackConfig(**values)


def test_scans_of_the_task_are_left_out_and_counted(tmp_path):
    make_store(tmp_path / "store", 4, labelled=False)
    make_store(tmp_path / "task", 2, labelled=True)  # the same scans 0 and 1, with labels
    manifest = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL, exclude=tmp_path / "task")
    assert manifest.in_task == 2
    assert manifest.volumes == 2
    _, bricks = everything(tmp_path / "shards")
    assert {info.volume for (info, _), _ in bricks} == {f"{2:016x}", f"{3:016x}"}
    make_store(tmp_path / "all", 4, labelled=True)
    with pytest.raises(DataError, match="not in the task as well"):
        pack(tmp_path / "store", tmp_path / "s2", CONTRACT, PATCH, STRIDES, SMALL, exclude=tmp_path / "all")


def test_blanked_voxels_travel_with_their_bricks(tmp_path):
    import dataclasses

    from tests_stores import scan

    from voxscale.entry import Privacy
    from voxscale.files import write_text
    from voxscale.ledger import LEDGER
    from voxscale.scan_folder import write_volume
    from voxscale.stream import ShardStream, ShardStreamConfig

    (key,) = make_store(tmp_path / "store", 1, labelled=False)
    volume, _ = scan(0)
    removed = np.zeros(volume.shape, bool)
    removed[:, volume.shape[1] // 2 :] = True
    entry = open_store(tmp_path / "store").entries[key]
    entry = dataclasses.replace(entry, privacy=Privacy("defaced", "none", False, int(removed.sum())))
    entry = write_volume(tmp_path / "store", key, volume, None, entry, {}, removed)
    row = json.loads((tmp_path / "store" / LEDGER).read_text()) | {"entry": dataclasses.asdict(entry)}
    write_text(tmp_path / "store" / LEDGER, json.dumps(row) + "\n")
    assert np.array_equal(open_store(tmp_path / "store").read_removed(key), removed)
    pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    reader, indexes = open_all(tmp_path / "shards")
    marked = 0
    for index in indexes:
        for sample in index.samples:
            brick = reader.open(index.name, sample)
            info, mask = brick.info, brick.read_mask()
            z, y, x = (slice(a, a + n) for a, n in zip(info.start, info.shape, strict=True))
            assert np.array_equal(removed[z, y, x], np.zeros(info.shape, bool) if mask is None else mask[0])
            marked += mask is not None
    assert marked
    stream = ShardStream(tmp_path / "shards", ShardStreamConfig(), 0)
    assert any(patch.removed is not None for index in range(len(stream)) for patch in stream.sample(index)[0])
    store = open_store(tmp_path / "store")
    unchecked = dataclasses.replace(entry, privacy=Privacy())
    write_text(tmp_path / "store" / LEDGER, json.dumps(row | {"entry": dataclasses.asdict(unchecked)}) + "\n")
    with pytest.raises(DataError, match="passed the privacy gate"):
        pack(tmp_path / "store", tmp_path / "s2", CONTRACT, PATCH, STRIDES, SMALL)
    assert store.entries[key].privacy.passed


def test_bricks_that_the_index_knows_as_air_are_left_out_unread(tmp_path):
    import dataclasses
    import shutil

    from voxscale.entry import Occupancy
    from voxscale.files import write_text
    from voxscale.ledger import LEDGER

    ids = make_store(tmp_path / "store", 2, labelled=False)
    lines = [json.loads(line) for line in (tmp_path / "store" / LEDGER).read_text().splitlines()]
    air = Occupancy.measure(np.zeros(open_store(tmp_path / "store").entries[ids[0]].shape, bool))
    lines[0]["entry"]["occupancy"] = dataclasses.asdict(air)
    write_text(tmp_path / "store" / LEDGER, "".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(tmp_path / "store" / ids[0] / "0")  # reading it would fail
    manifest = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, STRIDES, SMALL)
    assert manifest.volumes == 1
    assert manifest.skipped_air > 0
