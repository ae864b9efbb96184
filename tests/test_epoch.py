import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale.errors import ConfigError
from voxscale.stream.epoch import Order
from voxscale.stream.weights import WeightsConfig, group_weights, round_systematically

names = st.sampled_from(["a/CT/chest", "a/MR/head", "b/CT/chest"])
units = st.lists(st.dictionaries(names, st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=12)
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


def test_rounding_is_right_on_average():
    expected = [0.3, 1.6, 0.1, 2.0]
    mean = np.mean([round_systematically(expected, u) for u in np.linspace(0, 1, 1000, endpoint=False)], axis=0)
    assert mean == pytest.approx(expected, abs=0.01)
