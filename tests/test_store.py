import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05 import Image, ImageLabel, Labels

from voxscale.arrays import chunk_bytes
from voxscale.contract import PERCENTILES, InputContract
from voxscale.entry import Entry, Privacy
from voxscale.errors import DataError
from voxscale.files import append_line
from voxscale.ledger import LEDGER
from voxscale.scan_folder import write_volume
from voxscale.store import open_store
from voxscale.store_root import create_store, stamp_contract
from voxscale.volume import LabelMap, Volume

KEY = "0123456789abcdef"
CLASSES = {1: "liver", 4: "spleen"}


def make_volume(shape=(40, 33, 70), kind=np.int16, seed=0):
    voxels = np.random.default_rng(seed).integers(0, 120, shape).astype(kind)
    affine = np.diag([3.0, 2.0, 1.5, 1.0])
    affine[:3, 3] = -7.5, 20.0, 31.25
    return Volume(voxels, affine, "MR", slope=0.25, intercept=-3.5)


def make_label(volume):
    voxels = np.zeros(volume.voxels.shape, np.uint8)
    voxels[3:20, 4:30, 5:60] = 1
    voxels[25, 3:6, 2] = 4
    return LabelMap(voxels, volume.affine)


def make_entry(volume, label=None):
    return Entry(
        subject="s",
        modality=volume.modality,
        modality_from="values",
        shape=volume.voxels.shape,
        spacing=volume.spacing,
        affine=volume.affine.tolist(),
        dtype=volume.voxels.dtype.name,
        slope=volume.slope,
        intercept=volume.intercept,
        percentiles={str(p): float(p) for p in PERCENTILES},
        foreground_box=((0, 1), (0, 2), (0, 3)),
        foreground=0.5,
        label=None if label is None else {"1": 17 * 26 * 55, "4": 3},
    )


def make_store(path, volume, label=None):
    create_store(path, CLASSES)
    entry = write_volume(path, KEY, volume, label, make_entry(volume, label), CLASSES)
    append_line(path / LEDGER, {"id": KEY, "kind": "image", "status": "accepted", "entry": asdict(entry)})
    append_line(path / LEDGER, {"id": "f" * 16, "kind": "image", "status": "rejected", "entry": None})
    return open_store(path)


@pytest.fixture
def volume():
    return make_volume()


@pytest.fixture
def store(tmp_path, volume):
    return make_store(tmp_path / "store", volume, make_label(volume))


def test_everything_comes_back(store, volume):
    found = store.volume(KEY)
    assert np.array_equal(found.voxels, volume.voxels)
    assert np.array_equal(found.values(), volume.values())
    assert np.array_equal(found.affine, volume.affine)
    assert (found.modality, found.slope, found.intercept) == ("MR", 0.25, -3.5)
    assert np.array_equal(store.read_label(KEY), make_label(volume).voxels)
    assert store.classes == CLASSES
    assert store.contract is None
    assert list(store.entries) == [KEY]


def test_boxes(store, volume):
    box = ((3, 40), (32, 33), (10, 65))
    assert np.array_equal(store.read(KEY, box), volume.voxels[3:40, 32:33, 10:65])
    assert np.array_equal(store.read_label(KEY, box), make_label(volume).voxels[3:40, 32:33, 10:65])


def test_plain_zarr_reads_the_same(store, volume):
    group = zarr.open_group(store.path, mode="r")
    entry = group[KEY].attrs["voxscale"]
    stored = group[f"{KEY}/0"][...]
    assert np.array_equal((stored * entry["slope"] + entry["intercept"]).astype(np.float32), volume.values())
    assert group[f"{KEY}/0"].metadata.dimension_names == ("z", "y", "x")
    assert entry == json.loads(json.dumps(asdict(store.entries[KEY])))


def test_ome_zarr_metadata_is_valid(store, volume):
    image = Image.from_zarr(zarr.open_group(store.path / KEY, mode="r"))
    scale = image.attributes.ome.multiscales[0]
    assert [(axis.name, axis.type, axis.unit) for axis in scale.axes] == [(n, "space", "millimeter") for n in "zyx"]
    moves = scale.datasets[0].coordinateTransformations
    assert list(moves[0].scale) == [3.0, 2.0, 1.5]
    assert list(moves[1].translation) == [-7.5, 20.0, 31.25]
    assert Labels.from_zarr(zarr.open_group(store.path / KEY / "labels", mode="r")).attributes.ome.labels == ["task"]
    label = ImageLabel.from_zarr(zarr.open_group(store.path / KEY / "labels" / "task", mode="r"))
    found = label.attributes.ome.image_label
    assert [color.label_value for color in found.colors] == [1, 4]
    raw = json.loads((store.path / KEY / "labels" / "task" / "zarr.json").read_text())["attributes"]
    assert raw["ome"]["image-label"]["properties"][1] == {"label-value": 4, "class": "spleen"}
    assert raw["voxscale"]["counts"] == {"1": 17 * 26 * 55, "4": 3}


def test_label_locations_lie_on_their_class(store, volume):
    label, found = make_label(volume).voxels, store.label_locations(KEY)
    assert {value: len(places) for value, places in found.items()} == {1: 1000, 4: 3}
    for value, places in found.items():
        assert (label[tuple(places.T)] == value).all()
        assert len(np.unique(places, axis=0)) == len(places)
    assert found[1].min(axis=0).tolist() == [3, 4, 5]  # spread from the first voxel
    assert found[1].max(axis=0)[0] == 19  # to the last


def test_one_shard_per_small_volume_and_several_of_a_large_one(tmp_path):
    small = make_store(tmp_path / "a", make_volume((5, 33, 70)))
    assert len([p for p in (small.path / KEY / "0" / "c").rglob("*") if p.is_file()]) == 1
    large = make_volume((600, 8, 8))
    store = make_store(tmp_path / "b", large)
    assert len([p for p in (store.path / KEY / "0" / "c").rglob("*") if p.is_file()]) == 2  # 512 and 88 slices
    assert np.array_equal(store.read(KEY), large.voxels)


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32"])
def test_number_types(tmp_path, kind):
    volume = make_volume((9, 10, 11), kind)
    store = make_store(tmp_path / "a", volume)
    assert store.read(KEY).dtype == np.dtype(kind)
    assert np.array_equal(store.read(KEY), volume.voxels)


@pytest.mark.parametrize("part", ["0", "labels/task/0"])
def test_a_missing_chunk_is_an_error_even_if_it_was_empty(tmp_path, part):
    volume = replace(make_volume(), voxels=np.zeros((40, 33, 70), np.int16))
    store = make_store(tmp_path / "a", volume, make_label(volume))
    shard = next(p for p in (store.path / KEY / part / "c").rglob("*") if p.is_file())
    assert (store.read(KEY) == 0).all()
    shard.unlink()
    fresh = open_store(store.path)
    read = fresh.read if part == "0" else fresh.read_label
    with pytest.raises(DataError, match="intact chunks") as error:
        read(KEY)
    assert error.value.reason == "corrupt"


def test_every_chunk_of_an_empty_volume_is_written(tmp_path):
    volume = replace(make_volume(), voxels=np.zeros((40, 33, 70), np.int16))
    store = make_store(tmp_path / "a", volume)
    shard = next(p for p in (store.path / KEY / "0" / "c").rglob("*") if p.is_file())
    count = math.prod(-(-n // 32) for n in volume.voxels.shape)
    index = np.frombuffer(shard.read_bytes()[-(16 * count + 4) : -4], dtype="<u8")
    assert len(index) == 2 * count
    assert (index != 2**64 - 1).all()


def test_every_flipped_byte_is_found(tmp_path):
    volume = make_volume((9, 10, 11))
    store = make_store(tmp_path / "a", volume)
    shard = next(p for p in (store.path / KEY / "0" / "c").rglob("*") if p.is_file())
    whole = shard.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        broken = bytearray(whole)
        broken[place] ^= 4
        shard.write_bytes(broken)
        with pytest.raises(DataError, match="intact chunks"):
            open_store(store.path).read(KEY)
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="intact chunks"):
        open_store(store.path).read(KEY)


def test_rewriting_replaces_the_volume(store, volume):
    other = make_volume((8, 9, 10), seed=1)
    entry = write_volume(store.path, KEY, other, None, make_entry(other), CLASSES)
    append_line(store.path / LEDGER, {"id": KEY, "kind": "image", "status": "accepted", "entry": asdict(entry)})
    assert np.array_equal(open_store(store.path).read(KEY), other.voxels)
    assert entry.bytes == chunk_bytes(store.path / KEY)
    assert sorted(p.name for p in store.path.iterdir()) == [KEY, LEDGER, "zarr.json"]


def test_contract_is_stamped(store):
    contract = InputContract(spacing=(1.0, 2.0, 3.0))
    stamp_contract(store.path, contract)
    found = open_store(store.path)
    assert found.contract == contract
    assert found.classes == CLASSES
    create_store(store.path, {7: "kidney"})
    assert open_store(store.path).contract == contract
    assert open_store(store.path).classes == CLASSES | {7: "kidney"}


def test_classes_do_not_change_their_meaning(tmp_path):
    create_store(tmp_path, {1: "1"})
    create_store(tmp_path, {1: "liver"})
    assert open_store(tmp_path).classes == {1: "liver"}
    with pytest.raises(DataError, match=r"store.classes.1 must be 'liver', not 'spleen'") as error:
        create_store(tmp_path, {1: "spleen"})
    assert error.value.reason == "class_conflict"


@pytest.mark.parametrize(
    "box", [((0, 41), (0, 1), (0, 1)), ((-1, 2), (0, 1), (0, 1)), ((2, 2), (0, 1), (0, 1)), ((0, 1), (0, 1))]
)
def test_bad_boxes(store, box):
    with pytest.raises(DataError, match="box must lie inside") as error:
        store.read(KEY, box)
    assert error.value.reason == "bad_box"


def test_bad_requests(tmp_path, store):
    with pytest.raises(DataError, match="accepted ids"):
        store.read("f" * 16)
    plain = make_store(tmp_path / "plain", make_volume((9, 9, 9)))
    for call in (plain.read_label, plain.label_locations):
        with pytest.raises(DataError, match="must have a label") as error:
            call(KEY)
        assert error.value.reason == "no_label"


def test_what_is_not_a_store(tmp_path):
    with pytest.raises(DataError, match="must be a store made by") as error:
        open_store(tmp_path)
    assert error.value.reason == "not_a_store"
    create_store(tmp_path, {})
    text = (tmp_path / "zarr.json").read_text()
    (tmp_path / "zarr.json").write_text(text.replace('"schema": 3', '"schema": 99'))
    with pytest.raises(DataError, match="schema 3, not"):
        open_store(tmp_path)


def test_a_ledger_that_is_being_written_can_be_read(store):
    ledger = store.path / LEDGER
    with ledger.open("a") as handle:
        handle.write('{"id": "')
    before = ledger.read_bytes()
    assert list(open_store(store.path).entries) == [KEY]
    assert ledger.read_bytes() == before
    with ledger.open("a") as handle:
        handle.write("\n")
    with pytest.raises(DataError, match="line 3 must be as it was written"):
        open_store(store.path)


def test_levels_are_what_ome_says_and_what_the_store_reads(tmp_path):
    volume = make_volume((40, 70, 80))
    affine = volume.affine.copy()
    affine[0, 0] = 6.0  # thick slices stay as many
    volume = replace(volume, affine=affine)
    label = make_label(volume)
    removed = np.zeros(volume.voxels.shape, bool)
    removed[3, 4, 5] = True
    create_store(tmp_path, CLASSES)
    entry = replace(make_entry(volume, label), privacy=Privacy("defaced", "none", False, 1))
    entry = write_volume(tmp_path, KEY, volume, label, entry, CLASSES, removed)
    append_line(tmp_path / LEDGER, {"id": KEY, "kind": "image", "status": "accepted", "entry": asdict(entry)})
    store = open_store(tmp_path)
    assert [level.shape for level in store.levels(KEY)] == [(40, 70, 80), (40, 35, 40), (40, 18, 20)]
    group = zarr.open_group(tmp_path / KEY, mode="r")
    Image.from_zarr(group)
    for part in ("task", "removed"):
        ImageLabel.from_zarr(group[f"labels/{part}"])
    datasets = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert [d["path"] for d in datasets] == ["0", "1", "2"]
    assert datasets[2]["coordinateTransformations"][0]["scale"] == [6.0, 8.0, 6.0]
    assert datasets[1]["coordinateTransformations"][1]["translation"] == [-7.5, 20.0 + 1.0, 31.25 + 0.75]
    for number, level in enumerate(store.levels(KEY)):
        assert group[str(number)].shape == level.shape
        assert np.array_equal(group[str(number)][...], store.read(KEY, level=number))
        assert np.array_equal(group[f"labels/task/{number}"][...], store.read_label(KEY, level=number))
        assert store.read_removed(KEY, level=number).sum() == 1
    with pytest.raises(DataError, match="below 3"):
        store.read(KEY, level=3)


def test_metadata_of_an_array_may_be_damaged_without_harm(store, volume):
    (store.path / KEY / "0" / "zarr.json").write_text("no longer JSON")
    assert np.array_equal(open_store(store.path, "range").read(KEY), volume.voxels)
