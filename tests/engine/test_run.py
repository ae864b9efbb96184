"""A run folder belongs to one config, but a run may go on elsewhere and otherwise."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config import PretrainConfig
from voxscale.engine.config import EngineConfig, LoopConfig, WatchConfig
from voxscale.engine.run import open_run
from voxscale.errors import ConfigError
from voxscale.loader import LoaderConfig


def begun(run: Path) -> PretrainConfig:
    config = PretrainConfig(shards=Path("/a"), run=run, engine=EngineConfig(zero_stage=1))
    with open_run(run, config, {"shards": "0"}):
        pass
    return config


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"engine": EngineConfig(zero_stage=3, offload="all")}, "engine.offload, engine.zero_stage"),
        ({"loader": LoaderConfig(workers=3)}, "loader.workers"),
        ({"loop": LoopConfig(watch=WatchConfig(patience_s=9), keep=3)}, "loop.keep, loop.watch.patience_s"),
    ],
)
def test_run_goes_on_where_only_how_it_is_computed_differs(tmp_path, caplog, other, named):
    config = begun(tmp_path)
    kept = (tmp_path / "config.json").read_text()
    with caplog.at_level(logging.INFO), open_run(tmp_path, replace(config, **other), {"shards": "0"}):
        assert f"the run goes on as it began but for {named}" in caplog.text
    assert (tmp_path / "config.json").read_text() == kept
    caplog.clear()
    with caplog.at_level(logging.INFO), open_run(tmp_path, replace(config, shards=Path("/b")), {"shards": "0"}):
        assert caplog.text == ""


def test_another_accumulation_is_told_as_it_is_another_loss_and_refused_where_trainings_are_compared(tmp_path, caplog):
    config = begun(tmp_path)
    other = replace(config, engine=EngineConfig(accumulate=2))
    with caplog.at_level(logging.WARNING), open_run(tmp_path, other, {"shards": "0"}):
        assert "engine.accumulate is 2, no longer 1: losses over the samples of a micro-batch" in caplog.text
    with (
        pytest.raises(ConfigError, match="this one differs in engine.accumulate; choose another"),
        open_run(tmp_path, other, {"shards": "0"}, fixed=("engine.accumulate",)),
    ):
        pass


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"engine": EngineConfig(zero_stage=3, clip=1.0)}, "engine.clip"),
        ({"engine": EngineConfig(precision="fp32")}, "engine.precision"),
        ({"loop": LoopConfig(steps=5, keep=3)}, "loop.steps"),
        ({"loop": LoopConfig(batch=8)}, "loop.batch"),
        ({"seed": 7}, "seed"),
    ],
)
def test_another_training_is_refused(tmp_path, other, named):
    config = begun(tmp_path)
    with (
        pytest.raises(ConfigError, match=f"this one differs in {named}; choose another"),
        open_run(tmp_path, replace(config, **other), {"shards": "0"}),
    ):
        pass


def test_other_inputs_are_refused(tmp_path):
    config = begun(tmp_path)
    with (
        pytest.raises(ConfigError, match="this one differs in inputs.shards"),
        open_run(tmp_path, config, {"shards": "1"}),
    ):
        pass
