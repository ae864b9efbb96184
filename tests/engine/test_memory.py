"""Running out of memory for real, in a process that may have only so much."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxscale.engine.config import EngineConfig
from voxscale.engine.memory import failing_layer, is_out_of_memory, start_report

WORKER = Path(__file__).parent / "worker_memory.py"


def test_a_step_without_memory_names_tensors_and_levers(ranks, tmp_path):
    (output,) = ranks(WORKER, 1, str(tmp_path), expect=1)
    said = next(line for line in output.splitlines() if "TrainingError: memory must hold a step" in line)
    assert re.search(r"ran out at step 0 in layer \d \(\w+\) of the forward pass\. Held on this rank", said), said
    largest = said.split("Largest: ")[1]
    assert largest.startswith("activation 0 [8, 6, 64, 64, 64] 50.3 MB")
    assert "make micro-batches smaller (engine.accumulate, now 1)" in said
    assert "recompute the stages" in said
    assert "use more ranks with engine.zero_stage 3" in said
    assert "engine.offload" not in said  # there is no other memory than the host's
    assert said.index("recompute") < said.index("more ranks")  # activations are the most here


@pytest.mark.parametrize("where", ["layer", "other"])
def test_a_probe_without_memory_names_tensors_and_its_own_levers(ranks, tmp_path, where):
    (output,) = ranks(WORKER, 1, str(tmp_path), where, expect=1)
    said = next(line for line in output.splitlines() if "TrainingError: memory must hold" in line)
    place = "in layer 0 (Conv3d)" if where == "layer" else "outside of the network's layers"
    assert f"memory must hold the probe after step 0, but ran out {place}. Held on this rank: weights 0.00 GB" in said
    largest = said.split("Largest: ")[1]
    assert largest.startswith("tensor images of observe [8, 1, 64, 64, 64] 8.4 MB; ")
    assert largest.count("8.4 MB") == 1  # the same tensor has other names in the layers
    less = "make micro-batches smaller (engine.accumulate, now 1), as a pass has as many images as in training"
    own = "look at less (probe.patches, now 32)"
    assert said.endswith(f"{less}; {own}" if where == "layer" else f"{own}; {less}")


def test_a_start_without_memory_says_what_the_states_need(ranks, tmp_path):
    (output,) = ranks(WORKER, 1, str(tmp_path), "start", expect=1)
    said = next(line for line in output.splitlines() if "TrainingError: memory must hold the states" in line)
    # 33.6 million weights, their copy and two moments: 16 bytes each
    assert (
        "ran out while training started: 33.6 million weights with their optimizer's states take at least 0.54 GB"
        in said
    )
    assert "Largest: weight weight [4096, 8192] 134.2 MB. " in said
    assert "use more ranks with engine.zero_stage 3, or a smaller model" in said


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("restore", "the optimizer's states of a checkpoint"),
        ("teacher", "a teacher, whose network is whole on every rank"),
        ("snapshot", "a snapshot of step 1 in host memory"),
    ],
)
def test_states_beside_the_steps_without_memory_are_named_too(ranks, tmp_path, where, what):
    (output,) = ranks(WORKER, 1, str(tmp_path), where, expect=1)
    said = next(line for line in output.splitlines() if "TrainingError: memory must hold" in line)
    assert f"memory must hold {what}, but ran out beside the steps. Held on this rank: weights 0.03 GB" in said
    assert "Largest: " in said
    assert "weight weight [2048, 4096] 33.6 MB" in said
    assert said.endswith("use more ranks with engine.zero_stage 3, or a smaller model")


@pytest.mark.parametrize(
    ("config", "moments", "world", "gigabytes"),
    [
        (EngineConfig(zero_stage=1), 2, 4, "5.00"),  # 2 of each weight, and a quarter of 12
        (EngineConfig(zero_stage=3), 2, 4, "3.50"),
        (EngineConfig(zero_stage=0, precision="fp32"), 1, 4, "8.00"),
        (EngineConfig(zero_stage=2, precision="fp32"), 1, 1, "12.00"),  # 4, and 8: a copy and a moment
    ],
)
def test_what_states_need_by_hand(config, moments, world, gigabytes):
    said = start_report(10**9, moments, config, world)
    assert f"at least {gigabytes} GB on each of {world} ranks" in said
    assert ("shard more over the 4 ranks" in said) == (world > 1 and config.zero_stage < 3)


@pytest.mark.parametrize("text", ["invalid shape", "size mismatch"])
def test_other_errors_are_left_alone(text):
    assert not is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(MemoryError())


class Full(torch.autograd.Function):
    """Runs out of memory, forward or backward."""

    @staticmethod
    def forward(ctx, x, forward):
        if forward:
            raise torch.OutOfMemoryError("out of memory")
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        raise torch.OutOfMemoryError("out of memory")


class Layer(nn.Module):
    def __init__(self, passes: int) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, x: Tensor) -> Tensor:
        self.passes -= 1
        return Full.apply(x, self.passes < 0).sin()  # which keeps something for its backward pass


class Block(nn.Module):
    def __init__(self, passes: int, again: bool) -> None:
        super().__init__()
        self.inner, self.again = nn.Sequential(nn.Identity(), Layer(passes)), again

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)


@pytest.mark.parametrize(
    ("passes", "again", "layer"),
    [(0, False, "0.inner.1 (Layer)"), (1, False, ""), (1, True, "0.inner.1 (Layer)")],
    ids=["forward", "backward", "computed again"],
)
def test_the_layer_that_failed_is_named_where_one_was_computing(passes, again, layer):
    model = nn.Sequential(Block(passes, again), nn.Identity())
    with pytest.raises(torch.OutOfMemoryError) as caught:
        model(torch.ones(2, requires_grad=True)).sum().backward()
    assert failing_layer(model, caught.value) == layer
    assert failing_layer(nn.Identity(), caught.value) == ""
