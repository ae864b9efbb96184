"""Pretraining as a user starts it, from shards and from a store, in folders and behind `s3://` URLs."""

import dataclasses
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import warm_python
from object_store import inside
from tests_stores import make_store

from data_prep.pack import PackConfig, pack
from data_prep.plan import plan_task
from pretrain.config import PretrainConfig
from pretrain.mixture import MixtureConfig, WeightsConfig
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.probe.data import read_unlabelled
from pretrain.source import check_graphs, find_source, open_source, open_upright
from voxscale.config import save_json
from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.index_write import write_index
from voxscale.ledger import accepted
from voxscale.stream import AlikeConfig, ShardStreamConfig, StoreStreamConfig

TINY = ["--model.width", "2", "--objective.volume-fusion.block-min", "2", "--objective.volume-fusion.block-max", "6"]
TINY += ["--loop.batch", "2", "--loop.steps", "2", "--loop.log-every", "1", "--tracker.no-wandb"]
TINY += ["--engine.precision", "fp32"]
TIMES = {"samples_per_s", "voxels_per_s", "data_wait", "save_wait", "compute", "seconds", "rss_gb", "tflops"}
TIMES |= {"forward_share"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A store with an index, its plan and its shards."""
    folder = tmp_path_factory.mktemp("data")
    make_store(folder / "store", 4, labelled=False)
    write_index(folder / "store", accepted(folder / "store"))
    plan = plan_task(folder / "store", 16**3, InputContract(spacing=(2.0, 1.5, 1.5)))
    save_json(plan, folder / "plan.json")
    how = PackConfig(factor=1.25, shard_mb=1)
    pack(folder / "store", folder / "shards", plan.contract, plan.patch, plan.strides, how)
    return folder


def start(module, run, *arguments):
    """Run two steps; returns what was logged of each, times apart, and what was said."""
    command = ["-m", *module, "configs/pretrain.py:demo", "--run", run, *TINY, *arguments]
    done = warm_python.run(command, os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert not (run / "incidents-rank0.jsonl").exists()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", ["shards", "store"])
def test_a_run_from_a_url_is_that_from_a_folder(data, s3, tmp_path, source):
    """To the last bit of every loss; from the URL by the launcher, in a process that submitit starts, with a worker."""
    more = ["--plan", data / "plan.json"] if source == "store" else []
    url = f"s3://{inside(s3.upload(data / source))}"
    launcher = ["launch", "pretrain"]  # on as many threads, as sums depend on them
    there = [launcher, tmp_path / "there", f"--{source}", url, *more, "--loader.workers", 1, "--cpus", 1]
    with ThreadPoolExecutor(2) as pool:
        both = [["pretrain"], tmp_path / "here", f"--{source}", data / source, *more], there
        (here, plain), (there, said) = pool.map(lambda one: start(*one), both)
    assert plain.count("pretrain: shuffle: a batch of 2 mixes") == 1
    assert there == here
    assert here[0]["loss"] != here[1]["loss"]
    assert said.count("pretrain: shuffle: a batch of 2 mixes") == 1
    assert "leaked" not in said
    inputs = [json.loads((tmp_path / name / "inputs.json").read_text()) for name in ("here", "there")]
    assert inputs[0] == inputs[1]
    assert set(inputs[0]) == {"shards"} if source == "shards" else {"store", "plan"}


KILLED = """
import os, signal, sys
from pretrain import train
from pretrain.config import PretrainConfig
from voxscale.cli import leave, run

steps, losses = 0, train.losses

def counted(*args):
    global steps
    steps += 1
    if steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(*args)

if __name__ == "__main__":
    train.losses = counted
    leave(run(lambda: PretrainConfig, train.pretrain, sys.argv[1:], "python -m pretrain"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["shards", "store"])
def test_a_run_from_a_url_that_was_killed_goes_on_with_the_same_samples(data, s3, tmp_path, source):
    """SIGKILL in step 5; then on to the same bits from the URL, and by two ranks to the same numbers."""
    more = ["--plan", data / "plan.json"] if source == "store" else []
    more += ["--loop.steps", 6, "--loop.checkpoint-every", 2, "--loader.workers", 1]
    command = ["configs/pretrain.py:demo", *TINY, f"--{source}", f"s3://{inside(s3.upload(data / source))}", *more]
    # The path is for the loading process, which imports the script as its main module, wherever that lies.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(warm_python.ROOT)}
    run, whole = tmp_path / "run", tmp_path / "whole"
    (tmp_path / "killed.py").write_text(KILLED)
    done = warm_python.run([tmp_path / "killed.py", *command, "--run", run], environment)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved in (["step-00000002"], ["step-00000002", "step-00000004"])
    shutil.copytree(run, tmp_path / "two")
    here = ["configs/pretrain.py:demo", *TINY, f"--{source}", data / source, *more]
    for words in (
        ["pretrain", *here, "--run", whole],
        ["pretrain", *command, "--run", run],
        ["launch", "pretrain", *command, "--run", tmp_path / "two", "--processes", 2],
    ):
        done = warm_python.run(["-m", *words], environment)
        assert done.returncode == 0, done.stderr[-3000:]
    texts = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run", "two")]
    runs = [[json.loads(line) for line in lines] for lines in texts]
    want, same, two = ([{k: v for k, v in row.items() if k not in TIMES} for row in rows] for rows in runs)
    assert [row["step"] for row in want] == [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    assert same == want
    assert len({row["loss"] for row in want}) == 6
    begun = int(saved[-1][-1])  # Dice is pooled over the samples of a rank, cross-entropy is a mean
    assert two[begun]["ce"] == pytest.approx(want[begun]["ce"], rel=1e-5)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in want], rel=0.01)


def test_both_sources_have_one_patch_and_know_what_they_read(data):
    alike = AlikeConfig(group=4)  # of training alone: probes see every scan
    shards = PretrainConfig(shards=data / "shards", stream=ShardStreamConfig(alike=alike))
    store = PretrainConfig(store=data / "store", plan=data / "plan.json", scans=StoreStreamConfig(alike=alike))
    assert find_source(shards) == find_source(store)
    for config in (shards, store):
        stream, inputs = open_source(config, find_source(config), 3)
        assert len(stream.sample(0)[0]) == 3
        assert open_source(config, find_source(config), 3)[1] == inputs
    for config in (shards, store):
        crops = read_unlabelled(open_upright(config, find_source(config)), find_source(config).patch, 8)
        assert len(crops.images) == len(crops.subjects) == 8
        assert len(set(crops.subjects)) == 4  # each brick and scan once in 4
        assert bool(crops.inside.any())
    before = open_source(store, find_source(store), 1)[1]
    write_index(data / "store", list(accepted(data / "store"))[:3])
    after = open_source(store, find_source(store), 1)[1]
    write_index(data / "store", accepted(data / "store"))
    assert (before["plan"], before["store"]) == (after["plan"], open_source(store, find_source(store), 1)[1]["store"])
    assert before["store"] != after["store"]


@pytest.mark.parametrize("given", ["store", "plan"])
def test_a_store_and_its_plan_go_together(given, tmp_path):
    with pytest.raises(ConfigError, match="plan must be given with a store, and only with one"):
        find_source(PretrainConfig(**{given: tmp_path}))


def test_wide_wholes_of_shards_without_coarser_levels_are_refused(data):
    wide = MixtureConfig(weights=WeightsConfig(part_whole=1.0), part_whole=PartWholeConfig(wider=2))
    store = PretrainConfig(store=data / "store", plan=data / "plan.json", objective=wide)
    shards = PretrainConfig(shards=data / "shards", objective=wide)
    assert len(open_source(store, find_source(store), 1)[0].sample(0)[0]) == 1
    said = r"^objective.part_whole.wider must be at most 0 for shards that were packed with --levels 1, not 2"
    with pytest.raises(ConfigError, match=said):
        open_source(shards, find_source(shards), 1)


def test_graphs_that_ranks_would_share_are_refused(tmp_path):
    graphs = MixtureConfig(weights=WeightsConfig(graph_matching=1.0))
    shards = PretrainConfig(stream=ShardStreamConfig(alike=AlikeConfig(group=4)), objective=graphs)
    store = PretrainConfig(store=tmp_path, scans=StoreStreamConfig(alike=AlikeConfig(group=4)), objective=graphs)
    for config, name in ((shards, "stream"), (store, "scans")):
        check_graphs(config, 8)
        with pytest.raises(ConfigError, match=rf"^{name}.alike.group must be a divisor of a micro-batch's 6, not 4"):
            check_graphs(config, 6)
    # What is not read does not count.
    check_graphs(PretrainConfig(store=tmp_path, stream=shards.stream, objective=graphs), 6)


@pytest.mark.parametrize("world", [1, 2])
def test_graphs_that_an_even_shuffle_fills_are_warned_of_once(tmp_path, caplog, monkeypatch, world):
    """Graphs of crops of each sample, or of several samples of a brick, hold near-duplicates however samples come."""
    image = MixtureConfig(weights=WeightsConfig(graph_matching=1.0), graph_matching=GraphMatchingConfig(group=8, k=2))
    crops = GraphMatchingConfig(mode="sub_volume", group=8, k=2)
    even, four = ShardStreamConfig(), ShardStreamConfig(alike=AlikeConfig(group=4))
    said = {
        "stream": PretrainConfig(stream=even, objective=image),
        "scans": PretrainConfig(store=tmp_path, stream=four, objective=image),
    }
    silent = [
        PretrainConfig(stream=four, objective=image),
        PretrainConfig(stream=dataclasses.replace(even, patches=2), objective=image),
        PretrainConfig(stream=even, objective=dataclasses.replace(image, graph_matching=crops)),
        PretrainConfig(stream=even, objective=MixtureConfig(weights=WeightsConfig(patch_matching=1.0))),
        PretrainConfig(stream=even),
    ]
    for rank in range(world):
        monkeypatch.setattr("voxscale.dist.rank", lambda rank=rank: rank)
        for config in (*said.values(), *silent):
            check_graphs(config, 8)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    for name, record in zip(said, caplog.records, strict=True):
        wanted = f"{name}.alike.group should be 8, the samples of a graph, not 1: "
        assert record.getMessage().startswith(wanted)


def test_without_graphs_of_samples_no_group_is_refused():
    stream = ShardStreamConfig(alike=AlikeConfig(group=4))
    check_graphs(PretrainConfig(stream=stream), 6)
    check_graphs(PretrainConfig(stream=stream, objective=MixtureConfig(weights=WeightsConfig(patch_matching=1.0))), 6)
    patches = MixtureConfig(weights=WeightsConfig(graph_matching=1.0), graph_matching=GraphMatchingConfig(mode="patch"))
    check_graphs(PretrainConfig(stream=stream, objective=patches), 6)
    with pytest.raises(ConfigError, match=r"^stream.alike.group must be"):
        check_graphs(
            PretrainConfig(stream=stream, objective=MixtureConfig(weights=WeightsConfig(graph_matching=0.1))), 6
        )
