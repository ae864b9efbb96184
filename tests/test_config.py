import dataclasses
import json
import pickle
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import demo, finetune, pretrain
from voxscale.config import (
    config,
    config_hash,
    from_dict,
    load_json,
    load_preset,
    parse,
    require,
    save_json,
    to_dict,
    to_flags,
)
from voxscale.contract import InputContract
from voxscale.engine.config import EngineConfig, LoopConfig, OptimConfig, micro_batch
from voxscale.errors import ConfigError
from voxscale.loader import LoaderConfig


@config
class Part:
    lr: float = 0.1
    kind: Literal["a", "b"] = "a"


@config
class Whole:
    part: Part = Part()
    sizes: tuple[int, int] = (1, 2)
    on: bool = True


PRESETS = [
    demo.phantoms,
    demo.reduced,
    finetune.default,
    finetune.demo,
    pretrain.demo,
    pretrain.stunet_s,
    pretrain.stunet_b,
    pretrain.stunet_l,
    pretrain.stunet_h,
]


def test_config_is_frozen_keyword_only_and_picklable():
    made = Whole(sizes=(3, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.on = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        Whole(Part())  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made  # our own bytes


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_json(preset, tmp_path):
    made = preset()
    save_json(made, tmp_path / "config.json")
    assert load_json(type(made), tmp_path / "config.json") == made


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"part": {"lrr": 1}}, ["config.part.lrr", "Unexpected"]),
        ({"part": {"kind": "c"}}, ["config.part.kind", "'a' or 'b'", "'c'"]),
        ({"sizes": [1, "x"]}, ["config.sizes.1", "'x'"]),
    ],
)
def test_errors_name_the_dotted_key_and_the_value(values, words):
    with pytest.raises(ConfigError) as found:
        from_dict(Whole, values)
    assert all(word in str(found.value) for word in words)


def test_unreadable_json_is_a_config_error(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json must be a readable JSON"):
        load_json(Whole, tmp_path / "config.json")


def test_an_unreadable_file_is_told_in_one_line_without_its_path(tmp_path):
    """Of a folder, which may be a patient's; of a picture given by mistake; of brackets without end."""
    folder = tmp_path / "Doe_John"
    folder.mkdir()
    (folder / "picture.json").write_bytes(b"\x89PNG\xff")
    (folder / "deep.json").write_text("[" * 100_000)
    for name in ("gone.json", "picture.json", "deep.json", "."):
        with pytest.raises(ConfigError, match=r"must be a readable JSON file, but: [\w ]+$") as found:
            load_json(Whole, folder / "sub" / ".." / name)
        assert "Doe" not in str(found.value).removeprefix("Doe_John must")


def test_hash_depends_on_values_only():
    assert config_hash(Whole()) == config_hash(Whole(part=Part(lr=0.1)))
    assert config_hash(Whole()) != config_hash(Whole(part=Part(lr=0.2)))
    assert config_hash({"b": 1, "a": 2}) == config_hash({"a": 2, "b": 1})


def test_overrides_change_one_field_of_a_preset():
    made = parse(type(pretrain.demo()), "configs/pretrain.py:demo", ["--optim.lr", "0.5"], "test")
    assert made.optim.lr == 0.5
    assert dataclasses.replace(made.optim, lr=pretrain.demo().optim.lr) == pretrain.demo().optim
    assert made.model == pretrain.demo().model


def test_unknown_flag_ends_with_status_2_and_a_hint(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Whole, None, ["--part.lrr", "1"], "test")
    assert ended.value.code == 2
    assert "--part.lr" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["configs/nothing.py:demo", "configs/pretrain.py:nothing", "demo"])
def test_unknown_preset_is_refused(spec):
    with pytest.raises(ConfigError, match="preset must be"):
        load_preset(spec)


def test_preset_of_another_stage_is_refused():
    with pytest.raises(ConfigError, match="Whole, not a PretrainConfig"):
        parse(Whole, "configs/pretrain.py:demo", [], "test")


@given(
    st.builds(
        Whole,
        part=st.builds(Part, lr=st.floats(1e-9, 1e9), kind=st.sampled_from(["a", "b"])),
        sizes=st.tuples(st.integers(), st.integers()),
        on=st.booleans(),
    )
)
def test_flags_give_the_config_back(made):
    assert parse(Whole, None, to_flags(made), "test") == made
    assert from_dict(Whole, json.loads(json.dumps(to_dict(made)))) == made


def test_require_lists_choices():
    with pytest.raises(ConfigError, match=r"a\.b must be known, not 3; choose from 1, 2"):
        require(False, "a.b", "known", 3, (1, 2))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EngineConfig(precision="bf16", zero_stage=0), "engine.zero_stage"),
        (lambda: EngineConfig(clip=0.0), "engine.clip"),
        (lambda: EngineConfig(accumulate=0), "engine.accumulate"),
        (lambda: OptimConfig(lr=0.0), "optim.lr"),
        (lambda: OptimConfig(warmup=1.0), "optim.warmup"),
        (lambda: OptimConfig(momentum=1.0), "optim.momentum"),
        (lambda: OptimConfig(weight_decay=-1.0), "optim.weight_decay"),
        (lambda: LoopConfig(steps=0), "loop.steps"),
        (lambda: LoopConfig(keep=1), "loop.keep"),
        (lambda: LoaderConfig(workers=-1), "loader.workers"),
        (lambda: InputContract(spacing=(0.0, 1.0, 1.0)), "contract.spacing"),
        (lambda: InputContract(ct_window=(5.0, 5.0)), "contract.ct_window"),
        (lambda: InputContract(mr_percentiles=(2.0, 99.0)), "contract.mr_percentiles"),
        (lambda: micro_batch(5, 1, 2), "loop.batch"),
    ],
)
def test_bad_values_are_refused_by_dotted_name(make, name):
    with pytest.raises(ConfigError, match=f"^{name} must be"):
        make()


def test_micro_batch_divides_ranks_and_accumulation():
    assert micro_batch(12, 2, 3) == 2
