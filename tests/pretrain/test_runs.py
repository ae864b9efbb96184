"""Whole runs by the pretrain command: labelled and masked at every ZeRO stage, gone on from a checkpoint, and in 2D."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_stores import make_store

from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from voxscale.config import save_json
from voxscale.contract import InputContract
from voxscale.engine.checkpoint import load_weights

WORKER = Path(__file__).parent / "worker_pretrain.py"
LOST = Path(__file__).parent / "worker_start.py"
CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
COMMON = ["--model.width", "2", "--loop.log-every", "1", "--loop.checkpoint-every", "2"]
COMMON += ["--tracker.no-wandb", "--engine.precision", "fp32", "--loop.steps", "4"]
LABELS = ["--objective.weights.volume-fusion", "0", "--objective.weights.masked-reconstruction", "1"]
LABELS += ["--optim.kind", "sgd", "--optim.lr", "1e-3"]  # Adam makes noise in gradients that are 0 large
LABELS += ["--objective.weights.supervised", "0.5", "--objective.supervised.heads", "2", "--loop.batch", "2"]
STORE = ["configs/pretrain.py:demo", *COMMON, "--loop.batch", "2", "--loop.steps", "2", "--probe.every", "2"]
STORE += ["--objective.volume-fusion.block-min", "2", "--objective.volume-fusion.block-max", "6"]
STORE += ["--probe.crops", "1", "--probe.queries", "100", "--probe.examples", "20", "--probe.patches", "6"]
FLAT = ["--loop.batch", "8", "--loop.steps", "2", "--objective.masked-reconstruction.decoder", "light"]
FLAT += ["--objective.volume-fusion.block-min", "1", "3", "3", "--objective.volume-fusion.block-max", "1", "6", "6"]
FLAT += ["--objective.graph-matching.group", "4", "--objective.graph-matching.k", "2", "--stream.alike.group", "4"]

BOTH = ["--objective.weights.volume-fusion", "0", "--objective.weights.part-whole", "1"]
BOTH += ["--objective.weights.supervised", "1", "--objective.supervised.heads", "2"]
BOTH += [
    "--objective.part-whole.local-views",
    "2",
    "--objective.part-whole.parts",
    "4",
    "--objective.part-whole.least-voxels",
    "0",
]
BOTH += ["--objective.part-whole.prototypes", "64", "--objective.part-whole.hidden", "32"]
BOTH += ["--optim.kind", "sgd", "--optim.lr", "1e-3", "--loop.batch", "4"]

pytestmark = pytest.mark.slow()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes as bricks and as slices, and two labelled sets."""
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "scans", 4, labelled=False)
    for dims, name in ((3, "shards"), (2, "slices")):
        plan = plan_task(folder / "scans", 16**dims, CONTRACT, dims)
        if dims == 3:
            save_json(plan, folder / "plan.json")
        pack(folder / "scans", folder / name, plan.contract, plan.patch, plan.strides, PackConfig(factor=1.25))
    for name, count in (("one", 3), ("two", 2)):
        make_store(folder / name, count, labelled=True)
    return folder


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_runs(data: Path, ranks, tmp_path: Path) -> None:
    def arguments(run: str, stage: int, *more: str) -> list[str]:
        sets = ["--objective.supervised.sets", str(data / "one"), str(data / "two")]
        where = ["--shards", str(data / "shards"), "--run", str(tmp_path / run), "--engine.zero-stage", str(stage)]
        return ["configs/pretrain.py:demo", *COMMON, *LABELS, *sets, *where, *more]

    def start(world: int, *cases: list[str]) -> None:
        file = tmp_path / f"cases-{world}.json"
        file.write_text(json.dumps(cases))
        ranks(WORKER, world, str(file))

    flat = ["configs/pretrain.py:demo_2d", *COMMON, *FLAT]
    flat += ["--shards", str(data / "slices"), "--run", str(tmp_path / "flat")]
    bare = tmp_path / "manifest-alone"  # of shards whose scans are not there
    bare.mkdir()
    shutil.copy(data / "shards" / "manifest.json", bare)
    labels = arguments("labels", 1, "--shards", str(bare), "--objective.weights.masked-reconstruction", "0")
    store = [
        *STORE,
        "--run",
        str(tmp_path / "store"),
        "--store",
        str(data / "scans"),
        "--plan",
        str(data / "plan.json"),
    ]
    store += ["--probe.labelled", str(data / "one")]
    cut, last = arguments("cut", 1), "checkpoints/step-00000004"
    harmed = shutil.copytree(data / "one", tmp_path / "harmed-set")
    flip(harmed / f"{1:016x}" / "labels" / "task" / "0" / "c" / "0" / "0" / "0")
    harm = ["--objective.supervised.sets", str(harmed), str(data / "two")]
    harm_one, harm_two = (arguments(f"harmed-{world}", 1, *harm) for world in (1, 2))
    each = ["--loop.checkpoint-every", "1", "--loop.keep-every", "1"]
    start(
        1, arguments("one", 1, *each), cut, ["remove", str(tmp_path / "cut" / last)], cut, flat, labels, store, harm_one
    )
    start(2, arguments("two", 2, *each), arguments("three", 3, *each), harm_two)
    want = lines(tmp_path / "one")
    assert [row["step"] for row in want] == [1, 2, 3, 4]
    for run in ("two", "three"):
        for row, other in zip(want, lines(tmp_path / run), strict=True):
            for key in ("loss", "masked_reconstruction/error", "supervised/dice", "supervised/cross_entropy"):
                assert other[key] == pytest.approx(row[key], rel=1e-5), (run, row["step"], key)
        for key in ("masked_reconstruction/gradient", "supervised/gradient"):
            assert lines(tmp_path / run)[0][key] == pytest.approx(want[0][key], rel=1e-4), run
    check_updates([tmp_path / run for run in ("one", "two", "three")])
    # Cut after two steps, the run went on with the same labelled and unlabelled samples.
    assert [(row["step"], row["loss"]) for row in lines(tmp_path / "cut")] == [(r["step"], r["loss"]) for r in want]
    first, second = (load_weights(tmp_path / run / last) for run in ("one", "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert (tmp_path / "one" / "labelled.jsonl").read_text() == ""
    check_flat(tmp_path / "flat")
    assert all(row["loss"] > 0 for row in lines(tmp_path / "labels"))
    check_pictures(tmp_path / "labels", {"supervised_image", "supervised_label", "supervised_prediction"}, False)
    check_replaced(tmp_path / "harmed-1", tmp_path / "harmed-2")
    # A store is probed as shards are.
    rows = [row for row in lines(tmp_path / "store") if "probe/embedding/std" in row]
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[1]["probe/encoder/knn_dice.untrained"] == rows[0]["probe/encoder/knn_dice"]
    check_pictures(tmp_path / "store", {"fused", "prediction"}, True)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def check_replaced(one: Path, two: Path) -> None:
    """Both went on beside a damaged labelled scan, with the same others in its place, and noted it."""
    for row, other in zip(lines(one), lines(two), strict=True):
        for key in ("loss", "supervised/dice", "supervised/cross_entropy"):
            assert other[key] == pytest.approx(row[key], rel=1e-5), (row["step"], key)
    notes = []
    for run, world in ((one, 1), (two, 2)):
        files = [run / f"incidents-rank{rank}.jsonl" for rank in range(world)]
        rows = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
        assert {row["volume"] for row in rows} == {f"{1:016x}"}
        notes.append(sorted((row["kind"], row["index"], row["reason"]) for row in rows))
    assert notes[0] == notes[1]
    assert {(kind, reason) for kind, _, reason in notes[0]} == {("replaced", "corrupt, set 0")}


def check_updates(runs: list[Path]) -> None:
    """What SGD adds in the second step is a multiple of the gradients: the same at all stages and ranks.

    Later ones enlarge differences of rounding: a value that lies on the other side of 0 has another slope.
    """
    moved = []
    for run in runs:
        early, late = (load_weights(run / "checkpoints" / f"step-0000000{step}") for step in (1, 2))
        moved.append({name: late[name].double() - early[name].double() for name in late})
    for name, want in moved[0].items():
        for other in moved[1:]:
            # Weights of about 0.1 are rounded to 7e-9 in each step.
            assert float((other[name] - want).norm()) <= 1e-3 * float(want.norm()) + 2e-8 * want.numel() ** 0.5, name
    assert sum(float(want.norm()) > 2e-6 * want.numel() ** 0.5 for want in moved[0].values()) > len(moved[0]) / 2


def check_pictures(run: Path, names: set[str], scans: bool) -> None:
    """The objectives' own, and those of unlabelled scans where some are read."""
    with np.load(run / "preview.npz") as pictures:
        assert names <= set(pictures.files)
        assert ("neighbours" in pictures.files) == ("features_image_0" in pictures.files) == scans


def check_flat(run: Path) -> None:
    """Volume Fusion, graph matching and masked reconstruction on slices."""
    rows = lines(run)
    assert len(rows) == 2
    for branch in ("volume_fusion/dice", "graph_matching/matching", "masked_reconstruction/error"):
        assert all(np.isfinite(row[branch]) for row in rows)
        assert all(row[f"{branch.split('/')[0]}/gradient"] > 0 for row in rows[:1])
    with np.load(run / "preview.npz") as pictures:
        assert {pictures[name].shape for name in ("fused", "prediction", "masked_told")} == {(1, 16, 16)}


def test_part_whole_and_supervised_go_the_same_way_in_two_dimensions_as_in_three(
    data: Path, ranks, tmp_path: Path
) -> None:
    """One objective, two models and patches; at two ranks the numbers of one, in both."""
    sets = ["--objective.supervised.sets", str(data / "one"), str(data / "two")]
    none = ["--objective.weights.graph-matching", "0", "--objective.weights.masked-reconstruction", "0"]
    for world in (1, 2):
        cases: list[list[str]] = []
        for preset, shards in (("demo", "shards"), ("demo_2d", "slices")):
            where = ["--shards", str(data / shards), "--run", str(tmp_path / f"{preset}-{world}")]
            more = [*sets, *none, "--engine.zero-stage", str(world)]
            cases.append([f"configs/pretrain.py:{preset}", *COMMON, *BOTH, *where, *more])
        file = tmp_path / f"cases-{world}.json"
        file.write_text(json.dumps(cases))
        ranks(WORKER, world, str(file))
    terms = {f"part_whole/{term}" for term in ("localise", "compose", "decompose")}
    terms |= {"supervised/dice", "supervised/cross_entropy"}
    for preset, size in (("demo", (14, 16, 16)), ("demo_2d", (1, 16, 16))):
        one, two = (lines(tmp_path / f"{preset}-{world}") for world in (1, 2))
        assert [row["step"] for row in one] == [1, 2, 3, 4]
        assert one[0].keys() >= terms | {"part_whole/compose_share", "supervised/label_dice"}
        assert all(one[0][f"{branch}/gradient"] > 0 for branch in ("part_whole", "supervised"))
        for row, other in zip(one, two, strict=True):
            for key in ("loss", *terms):
                assert other[key] == pytest.approx(row[key], rel=1e-4), (preset, row["step"], key)
        learnt = load_weights(tmp_path / f"{preset}-1" / "checkpoints" / "step-00000004")
        kernels = {value.ndim for name, value in learnt.items() if name.startswith("backbone") and value.ndim > 1}
        assert kernels == {2 + sum(n > 1 for n in size)}
        with np.load(tmp_path / f"{preset}-1" / "preview.npz") as pictures:
            shown = ("part_whole_whole", "part_whole_parts", "supervised_label", "supervised_prediction")
            assert {pictures[name].shape for name in shown} == {size}
            assert pictures["supervised_label"].max() > 0


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("hang", r"\(in weights before the first step\) hangs: nothing new for 5 s, last at worker_start"),
        ("kill", "died"),
        ("after", r"\(in pictures after the last step\) hangs: nothing new for 5 s, last at worker_start"),
    ],
)
def test_a_rank_that_is_lost_before_the_first_step_or_after_the_last_is_named(
    data: Path, ranks, tmp_path: Path, how: str, what: str
):
    where = ["--shards", str(data / "shards"), "--run", str(tmp_path / "run"), "--loop.watch.patience-s", "5"]
    where += ["--objective.volume-fusion.block-min", "2", "--objective.volume-fusion.block-max", "6"]
    began = time.monotonic()
    out = ranks(LOST, 2, how, "configs/pretrain.py:demo", *COMMON, "--loop.batch", "2", *where, expect=None)
    assert re.search(rf"rank lost: rank 1 on \S+ .*{what}", out[0]), out[0][-2000:]
    assert time.monotonic() - began < 100  # imports of two ranks on a busy machine apart, it is 5 s and the beats
    assert out[0].count("(most recent call first)") >= 2  # its stacks


@pytest.mark.parametrize(
    ("how", "what", "lever"),
    [
        ("probe", "the probe after step 0", "look at fewer crops (probe.patches, now 6; probe.cases, now 16; "),
        ("pictures", "the pictures after training, which is saved", "show fewer crops (probe.patches, now 6)"),
    ],
)
def test_memory_that_runs_out_beside_the_steps_is_explained(data, ranks, tmp_path, how, what, lever):
    where = ["--shards", str(data / "shards"), "--run", str(tmp_path / "run")]
    (out,) = ranks(LOST, 1, how, *STORE, *where, expect=1)
    (said,) = [line for line in out.splitlines() if line.startswith("error: memory")]
    assert said.startswith(f"error: memory must hold {what}, but ran out outside of the network's layers. Held on this")
    assert "Largest: optimizer fp32 weights of group 0 [" in said
    assert lever in said
    assert "make micro-batches smaller (engine.accumulate, now 1)" in said
    saved = (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    assert saved == (how == "pictures")
