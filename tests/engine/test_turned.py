"""Weights that lie channels-last in the engine: the steps of plain PyTorch, and files that load with and without."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from engine.small import plain
from forked_ranks import together
from safetensors.torch import load_file

from voxscale.engine import checkpoint
from voxscale.engine.config import EngineConfig
from voxscale.engine.layout import WEIGHTS_LAST, settle
from voxscale.engine.pieces import Piece, Stored, header
from voxscale.errors import CheckpointError, ConfigError
from voxscale.models.stunet import STUNetConfig
from voxscale.models.timm_models import TimmConfig

FOLDER = Path(__file__).parent
FP32 = [
    "0-fp32-none-1-last",
    "1-fp32-none-4-last",
    "2-fp32-optimizer-1-last",
    "3-fp32-none-1-last",
    "3-fp32-all-4-last",
]
BF16 = ["1-bf16-none-1-last", "2-bf16-none-1-last", "3-bf16-none-1-last"]
# As in `test_parity`, where they are explained.
FP32_TOLERANCE, BF16_TOLERANCE, STUNET_TOLERANCE = 2e-6, 3e-3, 2e-3


def losses_of(run: Path) -> list[float]:
    return json.loads((run / "losses.json").read_text())


@pytest.mark.slow
def test_engine_with_turned_weights_makes_the_steps_of_plain_pytorch(ranks, tmp_path):
    torch.set_num_threads(1)
    ranks(FOLDER / "worker_parity.py", 2, str(tmp_path), "tiny", "12", ",".join([*FP32, *BF16]))
    for bf16, cases, tolerance in ((False, FP32, FP32_TOLERANCE), (True, BF16, BF16_TOLERANCE)):
        losses, weights = plain("tiny", 12, bf16)
        assert losses[-1] < 0.9 * losses[0]
        for case in cases:
            assert losses_of(tmp_path / case) == pytest.approx(losses, rel=tolerance), case
            final = torch.load(tmp_path / case / "final.pt", weights_only=True)
            assert {name: w.shape for name, w in final.items()} == {name: w.shape for name, w in weights.items()}
            if not bf16:
                torch.testing.assert_close(final["3.weight"], weights["3.weight"], rtol=1e-4, atol=1e-4, msg=case)


@pytest.mark.slow
def test_a_stunet_with_turned_weights_makes_the_steps_of_plain_pytorch(ranks, tmp_path):
    torch.set_num_threads(1)
    cases = ["1-fp32-none-1-last", "3-fp32-none-1-last"]
    ranks(FOLDER / "worker_parity.py", 1, str(tmp_path), "decoder", "4", ",".join(cases))
    losses, _ = plain("decoder", 4)
    for case in cases:
        assert losses_of(tmp_path / case)[:2] == pytest.approx(losses[:2], rel=FP32_TOLERANCE), case
        assert losses_of(tmp_path / case) == pytest.approx(losses, rel=STUNET_TOLERANCE), case


@pytest.mark.slow
def test_weights_moments_and_averages_load_with_and_without_on_other_ranks_and_stages(tmp_path):
    # What one stage wrote, the stage before reads; every tensor is compared bit by bit with that of the first.
    for world, label, source, last in [(2, "on", "-", "last"), (1, "off", "on", ""), (2, "again", "off", "last")]:
        words = [str(tmp_path), label, source, *filter(None, [last])]
        together(FOLDER / "worker_slices.py", world, words, tmp_path / f"out-{label}")
    for stage in range(4):
        on, off, again = (tmp_path / f"{label}-{(stage - n) % 4}" for n, label in enumerate(("on", "off", "again")))
        first = load_file(on / "export.safetensors")
        assert first["3.weight"].shape == (5, 6, 3, 3, 3)
        for run in (off, again):
            other = load_file(run / "export.safetensors")
            assert other.keys() == first.keys()
            assert all(torch.equal(other[name], first[name]) for name in first)


@pytest.mark.slow
def test_a_run_with_turned_weights_goes_on_with_the_same_bits(ranks, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cases = ["1-bf16-none-2-last", "2-fp32-optimizer-1-last", "3-fp32-none-1-last"]
    ranks(FOLDER / "worker_ema.py", 2, str(whole), ",".join(cases))
    ranks(FOLDER / "worker_ema.py", 2, str(cut), ",".join(cases), str(whole / "CASE" / "checkpoints" / "step-00000003"))
    for case in cases:
        ends = [run / case / "checkpoints" / "step-00000008" for run in (whole, cut)]
        for kind in ("weights", "exp_avg", "exp_avg_sq", "ema"):
            theirs, ours = (checkpoint.stored(end, kind) for end in ends)
            assert theirs.shapes["3.weight"] == (5, 6, 3, 3, 3)
            assert theirs.keys() == ours.keys()
            assert all(torch.equal(theirs[name], ours[name]) for name in theirs), (case, kind)


def write_pieces(path: Path, pieces: list[Piece]) -> Path:
    head = header(
        [(p.key, p.value.dtype, p.value.shape) for p in pieces],
        {"slices": json.dumps({p.key: p.place() for p in pieces})},
    )
    path.write_bytes(head + b"".join(p.value.numpy().tobytes() for p in pieces))
    return path


@pytest.mark.parametrize("turned", [False, True])
def test_any_part_of_a_tensor_is_read_in_either_order_from_files_of_either(tmp_path, turned):
    shape = (3, 4, 2, 1, 3)
    whole = torch.arange(72.0).reshape(shape)
    orders = {False: whole.flatten(), True: whole.permute(0, 2, 3, 4, 1).flatten()}
    cuts = [0, 5, 31, 72]  # within rows of 24
    files = [
        write_pieces(
            tmp_path / f"state-{n}.safetensors", [Piece("w", "a", shape, a, orders[turned][a:b].clone(), turned)]
        )
        for n, (a, b) in enumerate(pairwise(cuts))
    ]
    found = Stored(files, "w")
    assert found.shapes == {"a": shape}
    assert torch.equal(found["a"], whole)
    for wanted, flat in orders.items():
        for start, stop in [(0, 72), (0, 0), (7, 7), (3, 4), (24, 48), (23, 49), (50, 72)]:
            assert torch.equal(found.part("a", start, stop, wanted), flat[start:stop]), (wanted, start, stop)


def test_ranks_that_differ_in_the_order_are_refused(tmp_path):
    shape, value = (2, 2, 3), torch.arange(6.0)
    files = [
        write_pieces(tmp_path / f"state-{n}.safetensors", [Piece("w", "a", shape, 6 * n, value, bool(n))])
        for n in (0, 1)
    ]
    with pytest.raises(CheckpointError, match="w a in one order"):
        Stored(files, "w")


def test_turned_weights_ask_for_images_in_that_layout():
    with pytest.raises(ConfigError, match=r"^engine.weights_last must be off where engine.channels_last is, not .on."):
        EngineConfig(weights_last="on", channels_last="off")
    with pytest.raises(ConfigError, match=r"^engine.weights_last must be off"):
        settle(EngineConfig(weights_last="on"), TimmConfig(name="resnet50"))  # whose images are contiguous


def test_auto_turns_weights_where_the_table_says_so_and_there_is_no_gpu(monkeypatch):
    net, other = STUNetConfig(width=4, depth=1), TimmConfig(name="resnet50")
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert settle(EngineConfig(), net).weights_last == "off"
        with monkeypatch.context() as here:
            here.setitem(WEIGHTS_LAST, "stunet", True)
            assert settle(EngineConfig(), net).weights_last == ("off" if cuda else "on")
        assert settle(EngineConfig(weights_last="on"), net).weights_last == "on"
        assert settle(EngineConfig(weights_last="off"), net).weights_last == "off"
        assert settle(EngineConfig(channels_last="off"), net).weights_last == "off"
        assert settle(EngineConfig(channels_last="on"), other).weights_last == "off"
