"""The index gives back what the ledger holds, lazily, and knows when it is not one."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests_stores import make_store

from voxscale.entry import Occupancy
from voxscale.errors import DataError
from voxscale.index import INDEX, KEPT, SCHEMA, Index, write_index
from voxscale.seed import rng
from voxscale.store import accepted, open_store


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
    table = pq.read_table(tmp_path / "store" / INDEX)
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
    found = Index(tmp_path / "store" / INDEX).statistics
    together = np.concatenate([body[:5].ravel() for body in bodies[1:]])
    assert (found["MR"].scans, found["MR"].voxels) == (3, pytest.approx(len(together)))
    assert (found["MR"].mean, found["MR"].std) == pytest.approx((together.mean(), together.std()))
    assert (found["CT"].scans, found["CT"].mean) == (1, pytest.approx(bodies[0][:5].mean()))


def test_a_damaged_or_foreign_index_is_refused(tmp_path):
    make_store(tmp_path / "store", 1, labelled=False)
    (tmp_path / "store" / INDEX).write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="readable Parquet"):
        open_store(tmp_path / "store")
    pq.write_table(pq.read_table(_other(tmp_path)), tmp_path / "store" / INDEX)
    with pytest.raises(DataError, match="of version 2"):
        open_store(tmp_path / "store")


def _other(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    return tmp_path / "other.parquet"


def test_many_rows_open_without_being_read(tmp_path):
    make_store(tmp_path / "store", 1, labelled=True)
    ((key, entry),) = accepted(tmp_path / "store")
    write_index(tmp_path / "store", ((f"{number:016x}", entry) for number in range(30_000)))
    found = open_store(tmp_path / "store").entries
    assert len(found) == 30_000
    assert found[f"{29_999:016x}"] == entry
    assert len(found._groups) == 1  # of 59
    for number in range(0, 30_000, 500):
        assert found[f"{number:016x}"].shape == entry.shape
    assert len(found._groups) == KEPT
    assert key in found


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
