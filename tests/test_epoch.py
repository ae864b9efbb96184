import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.cells import Cells
from voxscale.errors import ConfigError
from voxscale.stream.alike import Graphs
from voxscale.stream.epoch import Order
from voxscale.stream.weights import WeightsConfig, group_weights, round_systematically

names = st.sampled_from(["a/CT/chest", "a/MR/head", "b/CT/chest"])
units = st.lists(st.dictionaries(names, st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=12)
GOLDEN = "4431e9f08aa651e8d096dee94d6d8f19b0c810038608e8c33c74d8cce6ac3218"
"""Of the order before its table was made with numpy."""
repeated, mixed, warm = st.sampled_from([1.0, 2.5, 4.0]), st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(units, repeated, mixed, warm, st.integers(0, 9))
def test_an_epoch_is_a_plan_of_which_every_entry_comes_once(units, repeats, mix, temperature, epoch):
    order = Order(units, repeats, mix, WeightsConfig(temperature=temperature), seed=3)
    entries = [order.entry(epoch, place) for place in range(order.length)]
    assert len(set(entries)) == len(entries)
    bricks = Counter((e.unit, e.group, e.place) for e in entries)
    assert all(e.place < units[e.unit][order.groups[e.group]] for e in entries)
    assert all(max(e.repeat for e in entries if (e.unit, e.group, e.place) == b) == n - 1 for b, n in bricks.items())
    totals = Counter()
    for unit in units:
        totals.update(unit)
    weights = group_weights(totals, WeightsConfig(temperature=temperature))
    for name, n in totals.items():
        number = order.groups.index(name)
        places = [(u, number, p) for u, unit in enumerate(units) for p in range(unit.get(name, 0))]
        shown = [bricks.get(place, 0) for place in places]
        expected = weights[name] * repeats
        assert all(np.floor(expected) - 1 <= k <= np.ceil(expected) + 1 for k in shown)
        assert abs(sum(shown) - expected * n) <= len(units) + 1


@given(units, st.integers(1, 4))
def test_order_is_a_pure_function_and_stays_with_a_few_units(units, mix):
    one, two = (Order(units, 2, mix, WeightsConfig(), 7) for _ in range(2))
    places = list(range(one.length))
    backwards = [two.entry(1, place) for place in reversed(places)][::-1]
    entries = [one.entry(1, place) for place in places]
    assert entries == backwards
    assert [pickle.loads(pickle.dumps(one)).entry(1, place) for place in places[:3]] == entries[:3]
    last = {unit: place for place, unit in enumerate(e.unit for e in entries)}
    first = {e.unit: place for place, e in reversed(list(enumerate(entries)))}
    open_at_once = max(sum(first[u] <= place <= last[u] for u in first) for place in places)
    assert open_at_once <= mix


def count_by_hand(units):
    """Groups, table and totals, told in the plainest way."""
    groups = sorted({name for unit in units for name in unit})
    table, totals = [], {}
    for number, unit in enumerate(units):
        for name in sorted(unit):
            table.append([number, groups.index(name), unit[name]])
            totals[name] = totals.get(name, 0) + unit[name]
    return groups, table, totals


@given(units)
def test_the_table_of_groups_is_what_units_hold(units):
    groups, table, totals = count_by_hand(units)
    cells = Cells.of(units)
    assert (list(cells.groups), cells.units, cells.table.tolist()) == (groups, len(units), table)
    assert list(cells.totals.items()) == list(totals.items())  # also in order: sums of floats depend on it
    back = Cells.unpacked(list(cells.groups), cells.units, cells.packed(), cells.checksum())
    assert (back.groups, back.units, back.table.tolist()) == (cells.groups, cells.units, table)
    one, two = (Order(each, 2.5, 2, WeightsConfig(temperature=0.5), 7) for each in (units, back))
    assert [one.entry(1, place) for place in range(one.length)] == [two.entry(1, place) for place in range(two.length)]
    for names, n in ((["x", *groups[1:]], len(units)), (groups, len(units) + 1)):
        with pytest.raises(ValueError, match="as it was written"):
            Cells.unpacked(names, n, cells.packed(), cells.checksum())


@pytest.mark.parametrize("graphs", [None, Graphs(size=4, run=2, showings_apart=True)], ids=["even", "graphs"])
@pytest.mark.parametrize("mix", [1, 2])
def test_blocks_of_units_that_hold_nothing_are_passed_over(mix, graphs):
    """Such as runs of scans that are all images of two dimensions."""
    order = Order([{}, {}, {"a/CT/chest": 5}, {}, {}, {}, {"a/MR/head": 3}, {}], 1.5, mix, WeightsConfig(), 7, graphs)
    for epoch in range(4):
        entries = [order.entry(epoch, place) for place in range(order.length)]
        assert len({*entries}) == len(entries) == 12
        told = [[e.unit, e.group, e.place, e.repeat] for e in entries]
        assert order.rows(epoch, order.length).tolist() == told


def test_the_order_is_that_of_a_million_scans_before():
    draw = np.random.default_rng(0)
    names = [f"{d}/{m}/{b}" for d in ("one", "two", "three") for m in ("CT", "MR") for b in ("chest", "head", "knee")]
    units = [dict(sorted(zip(names, draw.integers(1, 99, 18).tolist(), strict=True))) for _ in range(200)]
    order = Order(units, 2.5, 8, WeightsConfig(temperature=0.5, factors={"MR": 2.0}), 11)
    rows = order.rows(1, order.length)
    assert hashlib.sha256(rows.tobytes()).hexdigest() == GOLDEN


def test_epochs_and_seeds_differ():
    units = [{"a/CT/chest": 20}] * 6
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        order = Order(units, 1, 2, WeightsConfig(), seed)
        orders.append(tuple((e.unit, e.place) for e in (order.entry(epoch, place) for place in range(120))))
    assert len(set(orders)) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_weights_by_temperature_and_factor():
    counts = {"a/CT/chest": 900, "a/MR/head": 90, "b/MR/head": 10}
    flat = group_weights(counts, WeightsConfig(temperature=1.0))
    assert all(value == pytest.approx(1.0) for value in flat.values())
    even = group_weights(counts, WeightsConfig(temperature=0.0))
    shares = [even[name] * n for name, n in counts.items()]
    assert shares == pytest.approx([1000 / 3] * 3)
    root = group_weights(counts, WeightsConfig(temperature=0.5))
    masses = [root[name] * n for name, n in counts.items()]
    assert masses[0] / masses[1] == pytest.approx(np.sqrt(10))
    double = group_weights(counts, WeightsConfig(factors={"MR": 2.0}))
    assert double["a/MR/head"] / double["a/CT/chest"] == pytest.approx(2.0)
    without = group_weights(counts, WeightsConfig(factors={"a": 0.0}))
    assert without["b/MR/head"] * 10 == pytest.approx(1000)
    with pytest.raises(ConfigError, match="parts of a group"):
        group_weights(counts, WeightsConfig(factors={"PET": 2.0}))
    with pytest.raises(ConfigError, match="above 0 for at least one"):
        group_weights(counts, WeightsConfig(factors={"CT": 0.0, "MR": 0.0}))


@given(st.lists(st.floats(0, 20), max_size=30), st.floats(0, 1, exclude_max=True))
def test_systematic_rounding(expected, offset):
    found = round_systematically(expected, offset)
    assert (found >= 0).all()
    assert found.sum() == round(sum(expected))
    scale = round(sum(expected)) / sum(expected) if sum(expected) else 1.0
    assert all(abs(a - b * scale) < 1 + 1e-6 for a, b in zip(found, expected, strict=True))


def test_what_is_left_out_is_not_shown_for_a_rounding():
    assert round_systematically([0.7, 0.1, 1 / 3, 0.0], 0.0).tolist() == [0, 0, 1, 0]


def test_rounding_is_right_on_average():
    expected = [0.3, 1.6, 0.1, 2.0]
    mean = np.mean([round_systematically(expected, u) for u in np.linspace(0, 1, 1000, endpoint=False)], axis=0)
    assert mean == pytest.approx(expected, abs=0.01)
