"""Damaged labelled scans: noticed, recorded, replaced alike by any number of processes in training, nowhere else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_stores import make_store

from finetune.config import InferenceConfig
from finetune.segment import segment
from pretrain.probe.config import ProbeConfig
from pretrain.probe.data import read_labelled
from voxscale.augment.spatial import SpatialConfig
from voxscale.contract import InputContract
from voxscale.errors import DataError
from voxscale.loader import LoaderConfig, load
from voxscale.store import open_store
from voxscale.stream import CaseStream, CaseStreamConfig, rank_indices
from voxscale.stream.labelled import LabelledStream, read_sets

CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
PATCH = (8, 8, 8)
STILL = CaseStreamConfig(spatial=SpatialConfig(zoom=(1.0, 1.0), flip=(0.0, 0.0, 0.0)))
PARTS = ["0/c/0/0/0", "labels/task/0/c/0/0/0", "labels/task/zarr.json"]
BAD = f"{1:016x}"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    make_store(folder / "a", 4, labelled=True)
    make_store(folder / "b", 2, labelled=True)
    return folder


def flip(store: Path, name: str, place: float = 0.5, key: str = BAD) -> None:
    """Change one bit of one byte; in attributes a digit of a place, so that they remain JSON."""
    file = store / key / name
    data = bytearray(file.read_bytes())
    at = int(place * len(data))
    if name.endswith(".json"):
        at = next(n for n in range(data.index(b'"locations"'), len(data)) if data[n] in b"0123456789")
        at = next(n for n in range(data.index(b"[", at), len(data)) if data[n] in b"0123456789")
    data[at] ^= 1
    file.write_bytes(data)


def damaged(stores: Path, folder: Path, name: str) -> tuple[Path, Path]:
    for each in "ab":
        shutil.copytree(stores / each, folder / each)
    flip(folder / "a", name)
    return folder / "a", folder / "b"


def labelled(paths: tuple[Path, ...], how: CaseStreamConfig = STILL) -> LabelledStream:
    return LabelledStream(read_sets(paths, (), "x"), PATCH, CONTRACT, how, 7, (), "x")


@pytest.mark.parametrize("name", PARTS)
def test_another_case_of_the_same_set_stands_in_for_a_damaged_one(stores: Path, tmp_path: Path, name: str) -> None:
    good, bad = labelled((stores / "a", stores / "b")), labelled(damaged(stores, tmp_path, name))
    assert good.fingerprint == bad.fingerprint
    hit = []
    for index in range(24):
        ((one,), none), ((two,), replaced) = good.sample(index), bad.sample(index)
        assert not none
        assert (two.index, two.seed) == (one.index, one.seed)
        if not replaced:
            assert two.volume == one.volume
            assert np.array_equal(one.voxels, two.voxels)
            assert np.array_equal(one.label, two.label)
            assert bad.subject(index) == good.subject(index)
            continue
        hit.append(index)
        assert replaced == [(BAD, "corrupt, set 0")]
        assert (one.volume, good.set_of(index), bad.set_of(index)) == (BAD, 0, 0)
        assert two.volume != BAD
        assert two.volume in open_store(stores / "a").entries
        assert bad.subject(index, len(replaced)) == f"0/subject-{int(two.volume, 16)}"
    shown = [index for index in range(24) if good.sample(index)[0][0].volume == BAD and good.set_of(index) == 0]
    # Places of classes are asked for by the crops alone that are centred on one.
    assert hit == shown if name != PARTS[2] else hit and set(hit) < set(shown)
    assert len({bad.sample(index)[0][0].volume for index in hit}) > 1


@pytest.mark.parametrize("name", PARTS)
def test_order_and_replacements_are_the_same_by_any_number_of_ranks_and_workers(
    stores: Path, tmp_path: Path, name: str
) -> None:
    stream = labelled(damaged(stores, tmp_path, name))
    want = [stream.sample(index) for index in range(24)]
    replaced = [(index, *pair) for index, (_, bad) in enumerate(want) for pair in bad]
    assert replaced
    for world, workers in ((1, 1), (1, 2), (2, 0), (2, 1)):
        events, parts = [], []
        for rank in range(world):
            indices = rank_indices(0, 6, 4, 1, rank, world)
            how = LoaderConfig(workers=workers, patience_s=60.0, slow_s=60.0)
            parts.append(list(load(labelled((tmp_path / "a", tmp_path / "b")), indices, how, False, events.append)))
        assert sorted((e.index, e.volume, e.reason) for e in events if e.kind == "replaced") == replaced
        for step, both in enumerate(zip(*parts, strict=True)):
            found = [
                (i, s, v, y) for b in both for i, s, v, y in zip(b.indices, b.seeds, b.voxels, b.label, strict=True)
            ]
            for (index, seed, voxels, label), ((patch,), _) in zip(found, want[4 * step : 4 * step + 4], strict=True):
                assert (index, seed) == (patch.index, patch.seed)
                inner = tuple(slice(n) for n in patch.voxels.shape)  # a batch is filled up to its largest box
                assert np.array_equal(voxels[0][inner].numpy(), patch.voxels)
                assert np.array_equal(label[0][inner].numpy(), patch.label)


def test_whether_a_case_is_replaced_depends_on_its_box_and_not_on_what_is_in_memory(tmp_path: Path) -> None:
    """Of a scan of several chunks one is damaged: whole scans are kept in memory while there is room for them."""
    ids = make_store(tmp_path / "a", 3, labelled=True, shape=(40, 70, 70))
    chunks = sorted((tmp_path / "a" / BAD / "0" / "c").rglob("*"))
    assert sum(path.is_file() for path in chunks) == 1
    flip(tmp_path / "a", "0/c/0/0/0", 0.1)
    found = []
    for room in (0.0, 0.0003, 1.0):  # for none, one, all of the scans
        how = CaseStreamConfig(cache_gb=room, foreground=0.0, spatial=STILL.spatial)
        stream = CaseStream(tmp_path / "a", ids, PATCH, CONTRACT, how, 3)
        found.append([stream.sample(index) for index in range(45)])
    hit = [index for index, (_, bad) in enumerate(found[0]) if bad]
    shown = [index for index, ((patch,), _) in enumerate(found[0]) if patch.volume == BAD]
    assert hit
    assert shown  # elsewhere the scan is intact
    for other in found[1:]:
        assert [bad for _, bad in other] == [bad for _, bad in found[0]]
        for ((one,), _), ((two,), _) in zip(found[0], other, strict=True):
            assert one.volume == two.volume
            assert np.array_equal(one.voxels, two.voxels)
            assert np.array_equal(one.label, two.label)


def test_a_set_of_which_nothing_can_be_read_ends_the_run(stores: Path, tmp_path: Path) -> None:
    paths = damaged(stores, tmp_path, PARTS[0])
    for number in (0, 2, 3):
        flip(paths[0], PARTS[0], key=f"{number:016x}")
    stream = labelled(paths)
    index = next(index for index in range(24) if stream.set_of(index) == 0)
    with pytest.raises(DataError, match="4 choices in a row were damaged") as error:
        stream.sample(index)
    assert error.value.reason == "corrupt"


def test_what_is_tested_or_probed_is_never_replaced(stores: Path, tmp_path: Path) -> None:
    path, _ = damaged(stores, tmp_path, PARTS[0])
    with pytest.raises(DataError, match=f"scan {BAD} must have intact chunks; remove its folder .* ingest again"):
        read_labelled(ProbeConfig(every=1, labelled=path, crops=2), PATCH, CONTRACT, 0)
    store = open_store(path)
    with pytest.raises(DataError, match=f"scan {BAD} must have intact chunks"):
        segment(lambda images: images, store, BAD, CONTRACT, PATCH, InferenceConfig(), torch.device("cpu"))
    flip(stores_copy := shutil.copytree(stores / "b", tmp_path / "c"), PARTS[1])
    with pytest.raises(DataError, match=f"scan {BAD} must have intact chunks"):
        open_store(stores_copy).read_label(BAD)


def test_attributes_of_labels_are_checked_and_older_ones_are_read(stores: Path, tmp_path: Path) -> None:
    path, _ = damaged(stores, tmp_path, PARTS[2])
    with pytest.raises(DataError, match="must have the label attributes it was written with"):
        open_store(path).label_locations(BAD)
    file = path / f"{0:016x}" / PARTS[2]
    told = json.loads(file.read_text())
    del told["attributes"]["crc32c"]
    file.write_text(json.dumps(told))
    want, found = (open_store(each).label_locations(f"{0:016x}") for each in (stores / "a", path))
    assert all(np.array_equal(want[value], found[value]) for value in (1, 2))
