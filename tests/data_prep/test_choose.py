"""The choice from columns is the one from entries, scan by scan."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests_stores import make_store

from data_prep.bricks import PackConfig, brick_boxes, covered
from data_prep.choose import SHOWN, Digests, choose, shown, tables
from data_prep.pack import pack
from voxscale import index, index_write
from voxscale.contract import InputContract
from voxscale.entry import Privacy
from voxscale.errors import DataError
from voxscale.index import Index
from voxscale.index_write import write_index
from voxscale.ledger import accepted
from voxscale.store import open_store

CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
PATCH = (8, 12, 12)
CONFIG = PackConfig()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with an index in row groups of 4, of 9 volumes, images and all kinds of sizes, and its rows."""
    for module in (index, index_write):
        monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr("data_prep.choose.ROWS", 4)
    make_store(tmp_path / "store", 1, labelled=False)
    ((_, entry),) = accepted(tmp_path / "store")
    rows = [
        (
            f"{(n * 0x9E3779B97F4A7C15) % 2**64:016x}",
            dataclasses.replace(
                entry, subject=f"s{n % 5}", shape=(1 if n % 5 == 4 else 30 + 40 * n, 70, 20 + n), bytes=1000 * n + 1,
                spacing=(1 + n / 8, 1.0, 0.7), foreground_box=((3, 25 + 30 * n), (10, 61), (0, 20)),
            ),
        )
        for n in range(11)
    ]  # fmt: skip
    write_index(tmp_path / "store", rows)
    return tmp_path / "store", rows


def test_the_choice_from_columns_is_that_from_entries(store):
    path, rows = store
    opened = open_store(path)
    assert isinstance(opened.entries, Index)
    chosen, in_task = choose(opened, PATCH, CONTRACT, CONFIG, None)
    volumes = [(key, entry) for key, entry in rows if not entry.planar]
    assert (len(volumes), in_task) == (9, 0)
    assert [(each.key, each.subject) for each in chosen] == [(key, entry.subject) for key, entry in volumes]
    for each, (_, entry) in zip(chosen, volumes, strict=True):
        boxes = brick_boxes(entry, PATCH, CONTRACT, CONFIG)
        voxels = sum(math.prod(high - low for low, high in box) for box in boxes)
        assert each.size == pytest.approx(entry.bytes * voxels / math.prod(entry.shape), rel=1e-12)
    from_memory = dataclasses.replace(opened, entries=dict(rows))  # as where there is no index yet
    assert choose(from_memory, PATCH, CONTRACT, CONFIG, None) == (chosen, 0)


@given(
    st.lists(
        st.tuples(st.integers(2, 700), st.integers(0, 700), st.integers(1, 700), st.floats(0.2, 9)), min_size=3,
        max_size=3,
    ),
    st.floats(1, 3),
    st.floats(0, 0.95),
)  # fmt: skip
def test_what_bricks_cover_is_counted_as_they_are_cut(axes, factor, overlap):
    shape = tuple(n for n, _, _, _ in axes)
    boxes = tuple((low % n, low % n + 1 + high % (n - low % n)) for n, low, high, _ in axes)
    spacing = tuple(mm for _, _, _, mm in axes)
    config = PackConfig(factor=factor, overlap=overlap)

    class Scan:  # all that is asked of an entry
        dtype, foreground_box = "int16", boxes

    Scan.shape, Scan.spacing = shape, spacing
    cut = brick_boxes(Scan(), (96, 64, 64), CONTRACT, config)
    wanted = sum(math.prod(high - low for low, high in box) for box in cut)
    found = covered(np.array([shape]), np.array([boxes]), np.array([spacing]), (96, 64, 64), CONTRACT, config)
    assert found.tolist() == [wanted]


def test_scans_that_a_task_holds_are_known_by_their_columns(store, tmp_path):
    """Under other ids, of another subject; one that differs in one percentile is not taken for it."""
    path, rows = store
    (_, one), (_, two) = rows[2], rows[3]
    two = dataclasses.replace(two, percentiles=two.percentiles | {"50.0": two.percentiles["50.0"] + 1})
    make_store(tmp_path / "task", 0, labelled=False)
    write_index(
        tmp_path / "task", [(f"{n:016x}", dataclasses.replace(e, subject="x")) for n, e in enumerate((one, two))]
    )
    mine, theirs = ([row for t in tables(open_store(p), SHOWN) for row in shown(t)] for p in (path, tmp_path / "task"))
    assert [row in theirs for row in mine] == [n == 2 for n in range(11)]


def test_one_unchecked_scan_stops_all(store):
    path, rows = store
    rows[6] = (rows[6][0], dataclasses.replace(rows[6][1], privacy=Privacy(face="none", text="unchecked")))
    write_index(path, rows)
    with pytest.raises(DataError, match="privacy gate; 1 of its scans"):
        choose(open_store(path), PATCH, CONTRACT, CONFIG, None)
    write_index(path, [row for row in rows if row[1].planar])
    with pytest.raises(DataError, match="not cut from 2D images"):
        choose(open_store(path), PATCH, CONTRACT, CONFIG, None)


def test_patches_of_one_slice_are_cut_from_images_too_but_not_from_colours(store):
    path, rows = store
    rows = [(key, dataclasses.replace(entry, channels=3 if n == 4 else 1)) for n, (key, entry) in enumerate(rows)]
    write_index(path, rows)
    flat = (1, 16, 16)
    chosen, _ = choose(open_store(path), flat, CONTRACT, CONFIG, None)
    assert [each.key for each in chosen] == [key for n, (key, _) in enumerate(rows) if n != 4]
    write_index(path, [rows[4]])
    with pytest.raises(DataError, match="plan with --dims 2, and without colours"):
        choose(open_store(path), flat, CONTRACT, CONFIG, None)


def test_digests_tell_every_change_and_are_those_of_entries_in_memory(store):
    path, rows = store
    keys = [key for key, _ in rows]
    whole = Digests(open_store(path), keys).of(keys)
    assert len({*whole.values()}) == len(rows)
    in_memory = dataclasses.replace(open_store(path), entries=dict(rows))
    assert Digests(in_memory, keys).of(keys) == whole
    assert Digests(open_store(path), keys[3:5]).of(keys[4:5]) == {keys[4]: whole[keys[4]]}
    changed = [
        (key, dataclasses.replace(entry, body_std=entry.body_std + (n == 3))) for n, (key, entry) in enumerate(rows)
    ]
    write_index(path, [*reversed(changed)])
    now = Digests(open_store(path), keys).of(keys)
    assert [key for key in keys if now[key] != whole[key]] == [keys[3]]


def test_packing_looks_each_scan_up_only_to_cut_it(tmp_path, monkeypatch):
    """A second run, which cuts nothing, builds no entry at all."""
    make_store(tmp_path / "store", 4, labelled=False)
    write_index(tmp_path / "store", accepted(tmp_path / "store"))
    built, once = [], Index.__getitem__
    monkeypatch.setattr(Index, "__getitem__", lambda self, key: built.append(key) or once(self, key))
    monkeypatch.setattr(Index, "stream", lambda self: pytest.fail("all entries are built"))
    strides = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    first = pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, strides, CONFIG)
    assert len({*built}) == 4
    built.clear()
    assert pack(tmp_path / "store", tmp_path / "shards", CONTRACT, PATCH, strides, CONFIG) == first
    assert built == []
