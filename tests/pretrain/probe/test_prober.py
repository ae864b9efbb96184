"""Probes in a real training: they see what they should, and leave no trace."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests_stores import make_store

from data_prep.pack import PackConfig, pack
from voxscale.contract import InputContract
from voxscale.engine.checkpoint import load_weights

WORKER = Path(__file__).with_name("worker_probes.py")
CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory, ranks):
    """Runs of one rank at stage 1 and of two at stage 3, each with and without probes."""
    folder = tmp_path_factory.mktemp("probes")
    make_store(folder / "task", 4, labelled=True, shape=(20, 36, 36))
    make_store(folder / "data", 6, labelled=False, shape=(20, 36, 36))
    pack(folder / "data", folder / "shards", CONTRACT, (16, 32, 32), STRIDES, PackConfig(factor=1.25))

    def run(world: int, stage: str) -> list[str]:
        return ranks(WORKER, world, str(folder), f"{stage}-no", f"{stage}-yes")

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(run, (1, 2), "13"))
    return folder, dict(zip("13", said, strict=True))


def rows(run, probes):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if ("loss" not in row) == probes]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "3"])
def test_losses_weights_and_generators_have_the_same_bits_with_and_without(made, stage):
    folder, said = made
    plain, probed = folder / f"{stage}-no", folder / f"{stage}-yes"
    assert [row["loss"] for row in rows(plain, False)] == [row["loss"] for row in rows(probed, False)]
    assert not rows(plain, True)
    a, b = (dict(load_weights(run / "checkpoints" / "step-00000004")) for run in (plain, probed))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    for rank in said[stage]:
        without, probed = (line for line in rank.splitlines() if line.startswith("drawn"))
        assert without == probed


@pytest.mark.slow
def test_rows_hold_every_figure_beside_untrained_network_and_controls(made):
    folder, _ = made
    found = rows(folder / "1-yes", True)
    assert [row["step"] for row in found] == [0, 2, 4]
    for source in ("encoder", "decoder", "intensity"):
        for probe in ("knn_dice", "linear_dice"):
            name = f"probe/{source}/{probe}"
            last = found[-1]
            assert 0 <= last[f"{name}.low"] <= last[name] <= last[f"{name}.high"] <= 1
            assert last[f"{name}.untrained"] == found[0][name]
            assert last[f"{name}.gain"] == pytest.approx(last[name] - found[0][name])
            assert last[f"{name}.gain_low"] <= last[f"{name}.gain"] + 1e-9
            assert {f"{name}.shuffled_labels", f"{name}.shuffled_features"} <= last.keys()
            assert f"{name}.untrained" not in found[0]
    assert found[-1]["probe/intensity/knn_dice.gain"] == 0  # the images stay what they are
    assert found[-1]["probe/intensity/knn_dice"] > 2 * found[-1]["probe/intensity/knn_dice.shuffled_features"]
    for name in ("embedding/effective_rank", "embedding/std", "decoder/effective_rank"):
        assert found[-1][f"probe/{name}"] > 0
        assert f"probe/{name}.shuffled_features" in found[-1]
    for name in ("compose_gap", "decompose_slots", "decompose_scans", "interpolation_gap"):
        last = found[-1]
        assert last[f"probe/embedding/{name}.untrained"] == found[0][f"probe/embedding/{name}"]
        assert f"probe/embedding/{name}.shuffled_features" in last
    for source in ("encoder", "decoder", "intensity"):
        last = found[-1]
        assert 0 < last[f"probe/{source}/landmark_mm.lattice"] <= last[f"probe/{source}/landmark_mm"] < 60
        assert last[f"probe/{source}/landmark_mm.untrained"] == found[0][f"probe/{source}/landmark_mm"]
    for name in ("levels_entropy", "levels_usage"):
        last, head = found[-1], f"probe/volume_fusion/{name}"
        assert 0 <= last[f"{head}.low"] <= last[head] <= last[f"{head}.high"] <= 1
        assert last[f"{head}.low"] < last[f"{head}.high"]
        assert last[f"{head}.untrained"] == found[0][head] != last[head]
        assert 0 < last[f"{head}.shuffled_features"] <= 1
        assert last[f"{head}.shuffled_features"] != last[head]
    gain = [found[-1][f"probe/volume_fusion/levels_entropy.{end}"] for end in ("gain_low", "gain", "gain_high")]
    assert gain == sorted(gain)
    assert ["probe_wait" in row for row in rows(folder / "1-yes", False)] == [True, False, True, False]


@pytest.mark.slow
def test_slices_and_ranks_do_not_change_what_is_found(made):
    """The untrained network is the same at all stages, so are its figures."""
    folder, _ = made
    first = [rows(folder / run, True)[0] for run in ("1-yes", "3-yes")]
    names = [name for name in first[0] if not ("levels" in name and "shuffled" in name)]  # among 2 or 4 samples
    assert len(names) > 30
    one, two = ({name: row[name] for name in names} for row in first)
    assert one == pytest.approx(two, rel=1e-4, abs=1e-4)
