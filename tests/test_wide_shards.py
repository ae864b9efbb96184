"""Shards that hold coarser levels of their scans, and wide crops that are read from them."""

import dataclasses
import hashlib
import json
import shutil
import tarfile

import numpy as np
import pytest
import webdataset as wds
import zarr
from tests_stores import make_store, scan

from data_prep.bricks import PackConfig
from data_prep.pack import pack
from data_prep.verify import verify_shards
from voxscale.augment.spatial import SpatialConfig
from voxscale.contract import InputContract
from voxscale.entry import Privacy
from voxscale.errors import ConfigError, DataError
from voxscale.files import write_text
from voxscale.ledger import LEDGER
from voxscale.pyramid import levels
from voxscale.scan_folder import write_volume
from voxscale.shard_reader import ShardReader
from voxscale.shards import index_name, open_manifest
from voxscale.store import open_store
from voxscale.stream import Curriculum, ShardStream, ShardStreamConfig, WideCrops

CONTRACT = InputContract(spacing=(1.0, 1.0, 1.0))
PATCH, STRIDES = (16, 16, 16), ((2, 2, 2), *((1, 1, 1),) * 4)
STILL = SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0))
COARSE = PackConfig(factor=1.25, shard_mb=1, levels=3)
PLAIN = dataclasses.replace(COARSE, levels=1)


def packed(folder, config):
    name = folder / f"levels{config.levels}"
    return pack(folder / "store", name, CONTRACT, PATCH, STRIDES, config)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    make_store(folder / "store", 3, labelled=False, shape=(96, 80, 88), spacing=(1.0, 1.0, 1.0))
    packed(folder, COARSE)
    packed(folder, PLAIN)
    return folder


def always(level, view=0):
    """A crop that has one level all the time: 4, 2 or 1 times as wide."""
    return WideCrops(view, 2, Curriculum(tuple(float(n == level) for n in range(3)), 0.0), 4, 20)


def stream_of(path, crops, seed=0, **how):
    return ShardStream(path, ShardStreamConfig(**({"views": 1} | how)), seed, crops)


def opened(path):
    manifest = open_manifest(path)
    reader = ShardReader(path, manifest)
    return reader, [reader.index(line.name) for line in manifest.shards]


def test_levels_of_shards_are_those_that_zarr_reads_of_the_store_at_their_place(data):
    reader, indexes = opened(data / "levels3")
    found = {}
    for index in indexes:
        for sample in index.coarse:
            brick = reader.open(index.name, sample)
            info, (voxels,) = brick.info, brick.read()
            assert (info.level, info.volume, info.start) == (sample.level, sample.volume, (0, 0, 0))
            there = zarr.open_array(data / "store" / info.volume / str(info.level), mode="r")
            np.testing.assert_array_equal(voxels, there[:])
            entry = open_store(data / "store").entries[info.volume]
            factor = levels(entry.shape, entry.spacing)[info.level].factor
            block = np.array(list(np.ndindex(*factor)))  # the voxels of the scan that the first one is the mean of
            points = np.column_stack([block, np.ones(len(block))]) @ np.array(entry.affine).T
            np.testing.assert_allclose(np.array(info.affine)[:, 3], points.mean(axis=0))
            np.testing.assert_allclose(np.array(info.affine)[:3, :3], np.array(entry.affine)[:3, :3] * factor)
            np.testing.assert_allclose(info.spacing, np.array(entry.spacing) * factor)
            found[info.volume, info.level] = index.name
    volumes = {sample.volume: index.name for index in indexes for sample in index.samples}
    assert found == {(v, n): name for v, name in volumes.items() for n in (1, 2)}  # each once, in its bricks' tar


def test_shards_without_levels_say_nothing_of_them_and_bricks_are_the_same(data):
    (reader, plain), (other, coarse) = opened(data / "levels1"), opened(data / "levels3")
    assert (reader.manifest.schema_version, other.manifest.schema_version) == (5, 5)
    assert (reader.manifest.levels, other.manifest.levels) == (1, 3)
    for name in ("samples", "volumes", "subjects", "skipped_air"):
        assert getattr(reader.manifest, name) == getattr(other.manifest, name)
    texts = [(data / "levels1" / "manifest.json").read_text()]
    for index in plain:
        texts.append((data / "levels1" / index_name(index.name)).read_text())
        with tarfile.open(data / "levels1" / index.name) as tar:
            texts += [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".json")]
    assert not any(f'"{word}"' in text for text in texts for word in ("scan", "level", "levels", "coarse"))
    bricks = [
        {s.key: r.open(i.name, s) for i in indexes for s in i.samples}
        for r, indexes in ((reader, plain), (other, coarse))
    ]
    assert bricks[0].keys() == bricks[1].keys()
    for key, brick in bricks[0].items():
        np.testing.assert_array_equal(brick.read()[0], bricks[1][key].read()[0])
        shape = open_store(data / "store").entries[brick.info.volume].shape
        assert dataclasses.replace(brick.info, scan=shape, pack=other.manifest.config_hash) == bricks[1][key].info
    streams = [stream_of(data / name, None, views=2) for name in ("levels1", "levels3")]
    for index in range(len(streams[0])):
        a, b = (stream.sample(index)[0] for stream in streams)
        assert all(np.array_equal(x.voxels, y.voxels) and np.array_equal(x.mm, y.mm) for x, y in zip(a, b, strict=True))


def test_packing_again_writes_the_same_bytes_and_an_index_of_before_is_kept(data, tmp_path):
    shutil.copytree(data / "store", tmp_path / "store")
    packed(tmp_path, COARSE)
    for file in (data / "levels3").glob("[!.]*.*"):
        assert file.read_bytes() == (tmp_path / "levels3" / file.name).read_bytes()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "levels3").glob("shard-*")}
    packed(tmp_path, COARSE)
    assert times == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "levels3").glob("shard-*")}
    assert not verify_shards(tmp_path / "levels3", 1)[1]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_levels_as_members_of_their_own(data):
    urls = sorted(str(p) for p in (data / "levels3").glob("*.tar"))
    rows = [json.loads(s["json"]) for s in wds.WebDataset(urls, shardshuffle=False, empty_check=False)]
    manifest = open_manifest(data / "levels3")
    assert sum("level" not in row for row in rows) == manifest.samples
    assert sum("level" in row for row in rows) == 2 * manifest.volumes


@pytest.mark.parametrize(("level", "times"), [(0, 4), (1, 2), (2, 1)])
@pytest.mark.parametrize("as_float", [False, True])
def test_a_wide_crop_of_a_brick_is_the_scan_at_the_place_it_names(data, level, times, as_float):
    stream = stream_of(data / "levels3", always(level), spatial=STILL, as_float=as_float)
    number, corners = {4: 2, 2: 1, 1: 0}[times], set()
    for index in range(min(len(stream), 24)):
        ((patch,), bad) = stream.sample(index)
        assert not bad
        np.testing.assert_allclose(patch.mm[:, :3], np.eye(3) * times)
        corner = (patch.mm[:, 3] - patch.matrix[:, 3] * times - (times - 1) / 2) / times
        start = corner.round().astype(int)
        np.testing.assert_allclose(corner, start, atol=1e-9)
        there = zarr.open_array(data / "store" / patch.volume / str(number), mode="r")
        box = tuple(slice(a, a + n) for a, n in zip(start, patch.voxels.shape, strict=True))
        np.testing.assert_array_equal(patch.voxels, there[box])
        assert patch.voxels.dtype == (np.float32 if as_float else np.int16)
        corners.add((patch.volume, *start))
    assert len(corners) > 6


def test_wide_and_plain_crops_of_one_brick_come_alike_whoever_reads_their_neighbours(data):
    wide = WideCrops(1, 2, Curriculum((0.4, 0.3, 0.3), 0.5), 4, 20)

    def made():
        return stream_of(data / "levels3", wide, views=2, patches=3)

    one = made()
    forth = [one.sample(index)[0] for index in range(60)]
    widths = {round(patch.mm[0, 0] / max(abs(first.mm[0, 0]), 1e-9)) for first, patch in forth}
    assert len(widths) > 1
    for index in reversed(range(0, 60, 7)):
        for a, b in zip(forth[index], made().sample(index)[0], strict=True):
            assert np.array_equal(a.voxels, b.voxels)
            assert np.array_equal(a.matrix, b.matrix)
            assert np.array_equal(a.mm, b.mm)
    plain = stream_of(data / "levels3", None, views=2, patches=3)
    assert all(np.array_equal(forth[n][0].voxels, plain.sample(n)[0][0].voxels) for n in range(12))


@pytest.mark.parametrize("what", ["chunk", "json", "header"])
def test_a_damaged_level_is_noticed_and_replaced_and_no_plain_crop_misses_it(data, tmp_path, what):
    shutil.copytree(data / "levels3", tmp_path / "broken")
    _, indexes = opened(data / "levels3")
    index, sample = next((i, s) for i in indexes for s in i.coarse if s.level == 2)
    place = {"chunk": sample.voxels[0] + 40, "json": sample.json[0] + 20, "header": sample.span[0] + 3}[what]
    tar = tmp_path / "broken" / index.name
    whole = bytearray(tar.read_bytes())
    whole[place] ^= 16
    tar.write_bytes(whole)
    bad = {}
    for level in (0, 2):
        stream = stream_of(tmp_path / "broken", always(level), spatial=STILL)
        bad[level] = {pair for n in range(len(stream)) for pair in stream.sample(n)[1]}
    assert bad == {0: {(sample.volume, "corrupt")}, 2: set()}
    assert [damage.name for damage in verify_shards(tmp_path / "broken", 1)[1]] == [index.name]


def test_a_level_that_the_index_puts_into_a_brick_is_refused(data, tmp_path):
    """With every hash made anew, so that nothing but the place tells."""
    shutil.copytree(data / "levels3", tmp_path / "forged")
    reader, indexes = opened(tmp_path / "forged")
    name, told = indexes[0].name, json.loads((tmp_path / "forged" / index_name(indexes[0].name)).read_text())
    del told["crc32c"]  # of the index itself, which those of before have not
    told["coarse"][0] |= {key: told["samples"][0][key] for key in ("span", "json", "voxels", "crc32c")}
    text = json.dumps(told)
    (tmp_path / "forged" / index_name(name)).write_text(text)
    line = dataclasses.replace(reader.manifest.shards[0], index_sha256=hashlib.sha256(text.encode()).hexdigest())
    manifest = dataclasses.replace(reader.manifest, shards=(line, *reader.manifest.shards[1:]))
    with pytest.raises(DataError, match="must name bricks and places"):
        ShardReader(tmp_path / "forged", manifest).index(name)


def test_a_scan_without_coarser_levels_is_shown_as_wide_as_the_patch(tmp_path):
    make_store(tmp_path / "store", 2, labelled=False, shape=(24, 28, 30), spacing=(1.0, 1.0, 1.0))
    packed(tmp_path, COARSE)
    assert not any(index.coarse for index in opened(tmp_path / "levels3")[1])
    stream = stream_of(tmp_path / "levels3", always(0), spatial=STILL)
    assert {round(stream.sample(index)[0][0].mm[0, 0]) for index in range(4)} == {1}


def test_a_scan_whose_level_cannot_be_read_is_left_out_and_counted(tmp_path):
    make_store(tmp_path / "store", 2, labelled=False, shape=(64, 64, 64), spacing=(1.0, 1.0, 1.0))
    shutil.rmtree(tmp_path / "store" / f"{0:016x}" / "1")
    assert packed(tmp_path, COARSE).lost == {f"{0:016x}": "corrupt"}
    assert packed(tmp_path, PLAIN).lost == {}


def test_blanked_voxels_travel_with_their_levels(tmp_path):
    shape, spacing = (64, 64, 64), (1.0, 1.0, 1.0)
    (key,) = make_store(tmp_path / "store", 1, labelled=False, shape=shape, spacing=spacing)
    volume, _ = scan(0, shape, spacing)
    removed = np.zeros(shape, bool)
    removed[:, 33:] = True
    entry = open_store(tmp_path / "store").entries[key]
    entry = dataclasses.replace(entry, privacy=Privacy("defaced", "none", False, int(removed.sum())))
    entry = write_volume(tmp_path / "store", key, volume, None, entry, {}, removed)
    row = json.loads((tmp_path / "store" / LEDGER).read_text()) | {"entry": dataclasses.asdict(entry)}
    write_text(tmp_path / "store" / LEDGER, json.dumps(row) + "\n")
    packed(tmp_path, COARSE)
    stream = stream_of(tmp_path / "levels3", always(1), spatial=STILL)
    seen = 0
    for index in range(len(stream)):
        ((patch,), _) = stream.sample(index)
        start = ((patch.mm[:, 3] - 0.5) / 2 - patch.matrix[:, 3]).round().astype(int)
        z, y, x = (slice(2 * a, 2 * (a + n)) for a, n in zip(start, patch.voxels.shape, strict=True))
        blocks = [part for n in patch.voxels.shape for part in (n, 2)]
        want = removed[z, y, x].reshape(blocks).max(axis=(1, 3, 5))
        assert np.array_equal(patch.removed, want)
        seen += int(want.any())
    assert seen


@pytest.mark.parametrize("value", [0, 4])
def test_levels_that_a_store_has_not_are_refused(value):
    with pytest.raises(ConfigError, match=r"^pack.levels must be 1 to 3, not"):
        PackConfig(levels=value)
