"""The index gives back what the ledger holds, lazily, and knows when it is not one."""

import dataclasses
import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests_stores import make_store

from data_prep.plan import plan_task
from voxscale import index, index_write
from voxscale.contract import InputContract
from voxscale.entry import Occupancy
from voxscale.errors import DataError
from voxscale.index import CELLS, INDEX, Index
from voxscale.index_table import SCHEMA
from voxscale.index_write import write_index
from voxscale.ledger import accepted
from voxscale.seed import rng
from voxscale.store import open_store
from voxscale.stream import StoreStream, StoreStreamConfig, WeightsConfig


def test_the_index_is_the_ledger(tmp_path):
    make_store(tmp_path / "store", 5, labelled=True)
    before = dict(open_store(tmp_path / "store").entries)
    write_index(tmp_path / "store", accepted(tmp_path / "store"))
    after = open_store(tmp_path / "store").entries
    assert isinstance(after, Index)
    assert list(after) == list(before)
    assert dict(after) == before
    with pytest.raises(KeyError):
        after["unknown"]
    table = pq.read_table(tmp_path / "store" / "index" / "part-00000.parquet")
    assert table.schema.names == SCHEMA.names
    assert table.column("shape").to_pylist()[0] == list(before[next(iter(before))].shape)


def test_statistics_of_each_modality_are_those_of_all_bodies_together(tmp_path):
    make_store(tmp_path / "store", 1, labelled=False)
    ((_, entry),) = accepted(tmp_path / "store")
    bodies = [rng(n, "values").normal(100 * n, 1 + n, (10, 10 + n, 7)) for n in range(4)]
    entries = [
        dataclasses.replace(
            entry, modality="MR" if n else "CT", shape=body.shape, foreground=0.5, body_mean=float(body[:5].mean()),
            body_std=float(body[:5].std()),
        )
        for n, body in enumerate(bodies)
    ]  # fmt: skip
    write_index(tmp_path / "store", ((f"{n:016x}", each) for n, each in enumerate(entries)))
    found = Index(tmp_path / "store").statistics
    together = np.concatenate([body[:5].ravel() for body in bodies[1:]])
    assert (found["MR"].scans, found["MR"].voxels) == (3, pytest.approx(len(together)))
    assert (found["MR"].mean, found["MR"].std) == pytest.approx((together.mean(), together.std()))
    assert (found["CT"].scans, found["CT"].mean) == (1, pytest.approx(bodies[0][:5].mean()))


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A store whose index has parts of 8 rows in groups of 4, and its 21 rows, of two data sets and with images."""
    monkeypatch.setattr(index, "ROWS", 4)
    monkeypatch.setattr(index_write, "ROWS", 4)
    monkeypatch.setattr(index_write, "PART", 8)
    monkeypatch.setattr("voxscale.stream.scans.ROWS", 4)
    make_store(tmp_path / "store", 1, labelled=True)
    ((_, entry),) = accepted(tmp_path / "store")
    rows = [
        (
            f"{(n * 0x9E3779B97F4A7C15) % 2**64:016x}",
            dataclasses.replace(
                entry, dataset="ab"[n % 3 == 0], shape=(1 if n % 5 == 4 else 20, 30, n + 1), bytes=n,
                histogram=(1 / 3, n / 7), technique={"body_part": "chest"},
            ),
        )
        for n in range(21)
    ]  # fmt: skip
    write_index(tmp_path / "store", rows)
    return tmp_path / "store", rows


def write_ledger(store, rows):
    """Rows as a ledger, without an index."""
    lines = [
        {"id": key, "kind": "image", "status": "accepted", "entry": dataclasses.asdict(entry)} for key, entry in rows
    ]
    (store / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (store / INDEX).unlink()


def test_rows_are_found_by_id_and_in_order_over_all_parts(many):
    store, rows = many
    found = open_store(store).entries
    assert [line.name for line in sorted((store / "index").iterdir())] == [
        "cells.bin", "index.json", *(f"part-0000{n}.parquet" for n in range(3))
    ]  # fmt: skip
    assert len(found) == 21
    assert list(found) == [key for key, _ in rows]
    assert list(found.items()) == rows
    assert list(found.values()) == [entry for _, entry in rows]
    assert all(found[key] == entry and key in found for key, entry in reversed(rows))
    for key in ("0" * 15 + "1", rows[1][0].upper(), "x", "", "f" * 17, "-1"):
        assert key not in found
        with pytest.raises(KeyError):
            found[key]
    assert found.column("bytes").tolist() == list(range(21))
    assert found.column("shape").tolist() == [list(entry.shape) for _, entry in rows]
    assert list(pickle.loads(pickle.dumps(found))) == list(found)  # our own bytes


def test_scans_that_are_added_leave_full_parts_untouched(many):
    store, rows = many
    parts = [store / "index" / f"part-0000{n}.parquet" for n in range(4)]
    before = [(part.stat().st_ino, part.stat().st_mtime_ns) for part in parts[:3]]
    more = [(f"{n:016x}", rows[n][1]) for n in range(5)]
    write_index(store, [*rows, *more])
    after = [(part.stat().st_ino, part.stat().st_mtime_ns) for part in parts]
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert list(Index(store).items()) == [*rows, *more]
    write_index(store, rows[:3])
    assert list(Index(store).items()) == rows[:3]
    assert not parts[1].exists()
    write_index(store, [])
    assert len(Index(store)) == 0
    assert list(Index(store)) == []


@pytest.mark.parametrize("what", ["missing", "cut", "footer", "page", "foreign", "version", "json", "lines", "rows"])
def test_a_damaged_or_foreign_index_is_refused(many, what):
    store, rows = many
    part, told = store / "index" / "part-00001.parquet", store / INDEX
    data = bytearray(part.read_bytes())
    match what:
        case "missing":
            part.unlink()
        case "cut":
            part.write_bytes(data[:-20])
        case "footer":
            data[-40] ^= 1
            part.write_bytes(data)
        case "page":
            part.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
        case "foreign":
            part.write_bytes((store / "index" / "part-00000.parquet").read_bytes())
        case "version":
            told.write_text(json.dumps(json.loads(told.read_text()) | {"version": 1}))
        case "json":
            told.write_text("{")
        case "lines":
            told.write_text(json.dumps(json.loads(told.read_text()) | {"parts": [{"name": "x"}]}))
        case "rows":
            told.write_text(told.read_text().replace('"rows": 8', '"rows": 7'))
    with pytest.raises(DataError, match="ingest again") as error:
        list(open_store(store).entries.items())
    assert error.value.reason == ("bad_schema" if what == "version" else "corrupt")
    write_index(store, rows)  # mends it
    assert list(Index(store).items()) == rows


@pytest.mark.parametrize("what", ["missing", "cut", "flipped", "named", "counted"])
def test_a_damaged_table_of_groups_is_refused(many, what):
    store, rows = many
    file, told = store / CELLS, json.loads((store / INDEX).read_text())
    match what:
        case "missing":
            file.unlink()
        case "cut":
            file.write_bytes(file.read_bytes()[:-12])
        case "flipped":
            file.write_bytes(file.read_bytes()[:-1] + b"\1")
        case "named":
            told["cells"]["groups"].reverse()
        case "counted":
            told["cells"]["crc32c"] = "1"
    (store / INDEX).write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"cells\.bin must be as it was written; ingest again") as error:
        order_of(store)
    assert error.value.reason == "corrupt"
    write_index(store, rows)
    order_of(store)


def test_a_store_without_the_table_is_read_as_before(many):
    store, _ = many
    told, shown, cells = json.loads((store / INDEX).read_text()), order_of(store), Index(store).cells
    del told["cells"]
    (store / INDEX).write_text(json.dumps(told))
    (store / CELLS).unlink()
    assert order_of(store) == shown
    found = Index(store).cells
    assert (found.groups, found.units) == (cells.groups, cells.units)
    assert np.array_equal(found.table, cells.table)


def test_a_stream_starts_without_looking_into_a_part(many, monkeypatch):
    store, _ = many
    opened = []
    once = pq.read_metadata
    monkeypatch.setattr(index.pq, "read_metadata", lambda *args: opened.append(args) or once(*args))
    stream = StoreStream(store, (8, 8, 8), InputContract(), StoreStreamConfig(mix=1), seed=3)
    assert len(stream) > 0
    assert not opened
    stream.volume(0)
    assert len(opened) == 1


def test_a_plan_from_columns_is_that_from_entries(many):
    store, rows = many
    plan = plan_task(store, 12**3)
    write_ledger(store, rows)
    assert plan_task(store, 12**3) == plan
    assert plan.contract.spacing == rows[0][1].spacing


def test_ids_must_be_ids(tmp_path):
    make_store(tmp_path / "store", 1, labelled=False)
    ((_, entry),) = accepted(tmp_path / "store")
    with pytest.raises(DataError, match="16 hexadecimal digits"):
        write_index(tmp_path / "store", [("ABC", entry)])
    assert not (tmp_path / "store" / INDEX).exists()


def order_of(store, count=60, **weights):
    stream = StoreStream(
        store, (8, 8, 8), InputContract(), StoreStreamConfig(mix=2, weights=WeightsConfig(**weights)), seed=3
    )
    return [stream.volume(number) for number in range(count)], len(stream)


def test_the_order_of_a_stream_does_not_depend_on_the_parts(many, monkeypatch):
    store, rows = many
    volumes = {key for key, entry in rows if not entry.planar}
    shown, length = order_of(store)
    assert length == 4 * len(volumes)
    assert set(order_of(store, length)[0]) == volumes
    monkeypatch.setattr(index_write, "PART", 12)
    write_index(store, rows)
    assert len(list((store / "index").glob("*.parquet"))) == 2
    assert order_of(store)[0] == shown
    write_ledger(store, rows)
    assert order_of(store)[0] == shown  # from the ledger


def test_data_sets_are_weighted(many):
    store, rows = many
    sets = {key: entry.dataset for key, entry in rows}
    shown, length = order_of(store, 10, temperature=0.0)
    shown = [sets[key] for key in order_of(store, length, temperature=0.0)[0]]
    assert abs(shown.count("a") - shown.count("b")) <= 2
    assert {sets[key] for key in order_of(store, length // 2, factors={"b": 0.0})[0]} == {"a"}


@pytest.mark.parametrize(("left_out", "shown"), [("head", {"CT chest", "MR chest"}), ("MR", {"CT chest", "CT head"})])
def test_modalities_and_body_regions_are_weighted(tmp_path, left_out, shown):
    make_store(tmp_path / "store", 1, labelled=False)
    ((_, entry),) = accepted(tmp_path / "store")
    kinds = {f"{n:016x}": f"{('CT', 'MR')[n % 2]} {('chest', 'head')[n // 2 % 2]}" for n in range(40)}
    rows = [
        (key, dataclasses.replace(entry, modality=kind.split()[0], technique={"body_part": kind.split()[1]}))
        for key, kind in kinds.items()
    ]
    write_index(tmp_path / "store", rows)
    _, length = order_of(tmp_path / "store")
    assert {kinds[key] for key in order_of(tmp_path / "store", length)[0]} == {*kinds.values()}
    found, length = order_of(tmp_path / "store", length, factors={left_out: 0.0})
    assert {kinds[key] for key in found} == shown
    found = [kinds[key] for key in order_of(tmp_path / "store", length, factors={left_out: 3.0})[0]]
    times = {kind: found.count(kind) / length for kind in {*found}}
    assert all(times[kind] == pytest.approx(1 / 8 if kind in shown else 3 / 8, abs=0.02) for kind in times)


def test_many_rows_open_without_being_read(tmp_path, monkeypatch):
    make_store(tmp_path / "store", 1, labelled=True)
    ((_, entry),) = accepted(tmp_path / "store")
    write_index(tmp_path / "store", ((f"{number:016x}", entry) for number in range(4000)))
    read = []
    once = Index.read
    monkeypatch.setattr(Index, "read", lambda self, number, columns: read.append(number) or once(self, number, columns))
    found = open_store(tmp_path / "store").entries
    assert len(found) == 4000
    assert found.row_groups == 4
    assert found.cells.table[:, 2].sum() == 4000
    assert not read
    assert found[f"{3999:016x}"] == entry
    assert read == [0, 1, 2, 3, 3]  # all ids, then the row's group


@pytest.mark.parametrize("shape", [(10, 40, 70), (1, 700, 33), (64, 32, 32), (520, 9, 9)])
def test_occupancy_counts_body(shape):
    body = rng(0, "body").random(shape) < 0.3
    body[:, : shape[1] // 2] = False
    found = Occupancy.measure(body)
    shares = found.decode()
    assert max(found.grid) <= 17
    for place in np.ndindex(found.grid):
        box = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, found.cell, strict=True))
        assert 0 <= shares[place] - body[box].mean() <= 1 / 255 + 1e-6
    z, y, x = (slice(0, n) for n in shape)
    assert found.most((z, y, x)) == pytest.approx(float(shares.max()))
    cell = found.cell[1]
    if shape[1] // 2 >= cell:
        assert found.most((z, slice(0, cell), x)) == 0
