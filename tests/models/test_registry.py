"""Every backbone preset keeps every promise of the interface.

Up to 60 million weights a preset runs as it is; a larger one runs on the meta
device, and a narrow twin from the same builder stands in for its values.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from models.presets import CLASSES, PRESETS, images, narrow, preset, smallest
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from voxscale.config import to_dict
from voxscale.errors import ConfigError
from voxscale.models.build import build, read_config
from voxscale.models.interface import Backbone
from voxscale.seed import torch_generator

REAL = 60_000_000


every = pytest.mark.parametrize("name", PRESETS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def count(model: Backbone) -> int:
    return sum(p.numel() for p in model.parameters())


def gradients(model: Backbone, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and the gradient of their mean square by parameter name."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # of dropout
    outputs = model(x)
    sum(y.square().mean() for y in outputs).backward()
    return outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@every
def test_forward_and_backward_reach_every_weight(name: str) -> None:
    model = build(preset(name), "meta")
    real = count(model) <= REAL
    model = build(preset(name) if real else narrow(preset(name)))
    x = images(model, batch=2 if not real else 1)
    outputs, grads = gradients(model, x)
    assert all(y.isfinite().all() for y in outputs)
    missing = [key for key, p in model.named_parameters() if p.requires_grad and key not in grads]
    assert missing == []
    assert all(g.isfinite().all() for g in grads.values())


@pytest.mark.slow
@every
def test_large_presets_run_as_they_are(name: str) -> None:
    if not REAL < count(build(preset(name), "meta")) < 1e9:
        pytest.skip("runs in the fast test, or is too large for memory")
    model = build(preset(name))
    outputs, grads = gradients(model, images(model))
    assert all(y.isfinite().all() for y in outputs)
    assert len(grads) == len(list(model.parameters()))


@every
def test_features_are_as_declared(name: str) -> None:
    model = build(preset(name), "meta").eval()
    x = images(model, "meta", batch=2)
    size = x.shape[2:]
    features = model.features(x)
    want = [(2, level.channels, *[n // s for n, s in zip(size, level.stride, strict=True)]) for level in model.levels]
    assert [tuple(y.shape) for y in features] == want
    if model.decoder_levels:
        assert [tuple(y.shape) for y in model.decode(x)] == want[: model.decoder_levels]
        outputs = model(x)
        assert [tuple(y.shape) for y in outputs] == [(2, CLASSES, *shape[2:]) for shape in want[: len(outputs)]]
        assert len(outputs) == model.config.heads
    else:
        assert [y.shape for y in model(x)] == [y.shape for y in features]
        with pytest.raises(ConfigError, match=r"^model must be one with a decoder, not"):
            model.decode(x)


@every
def test_transformers_have_tokens_and_others_say_that_they_have_none(name: str) -> None:
    model = build(preset(name), "meta").eval()
    x = images(model, "meta", batch=2)
    if not name.startswith(("vit", "sam_vit", "lvm_med_vit")):
        with pytest.raises(ConfigError, match=r"^model must be one with tokens, not"):
            model.tokens(x)
        return
    tokens = model.tokens(x)
    assert tokens.grid == tuple(n // s for n, s in zip(x.shape[2:], model.levels[-1].stride, strict=True))
    assert tokens.values.shape[:2] == (2, tokens.prefix + math.prod(tokens.grid))


@every
def test_weights_on_meta_become_those_of_a_built_model(name: str) -> None:
    config = narrow(preset(name))
    model = build(config, "meta")
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.detach().fill_(7)  # whatever stood in the memory
    model.initialise(torch_generator(0, "initialise"))
    want, got = build(config).state_dict(), model.state_dict()
    assert all(torch.equal(want[key], got[key]) for key in want)
    x = images(model)
    for a, b in zip(build(config).eval()(x), model.eval()(x), strict=True):
        assert torch.equal(a, b)


@every
def test_same_seed_same_weights(name: str) -> None:
    state = torch.get_rng_state()
    config = narrow(preset(name))
    first, second = build(config), build(config)
    assert torch.equal(torch.get_rng_state(), state)
    first.initialise(torch_generator(7))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    second.initialise(torch_generator(7))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@every
def test_recomputed_stages_give_equal_outputs_and_gradients(name: str) -> None:
    config = narrow(preset(name))
    stages = tuple(range(len(build(config, "meta").levels)))
    plain, saving = build(config), build(dataclasses.replace(config, checkpoint_stages=stages))
    x = images(plain, batch=2)
    saved: list[int] = []
    for model in (plain, saving):
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)  # of dropout
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            kept = model(x)  # noqa: F841  # the graph must live
        saved.append(sum(sizes.values()))
    assert saved[1] < saved[0]
    want, got = gradients(plain, x), gradients(saving, x)
    for a, b in zip(want[0], got[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert want[1].keys() == got[1].keys()
    for key in want[1]:
        torch.testing.assert_close(want[1][key], got[1][key])
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):  # norms saw each batch once, not once more
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"^model\.checkpoint_stages must be different numbers"):
        build(dataclasses.replace(config, checkpoint_stages=(len(stages),)), "meta")


@every
def test_state_dict_and_config_round_trip(name: str) -> None:
    config = narrow(preset(name))
    model, other = build(config).eval(), build(read_config(to_dict(config))).eval()
    assert other.config == config
    model.initialise(torch_generator(3))
    assert not other.load_state_dict(model.state_dict(), strict=True).missing_keys
    x = images(model)
    for a, b in zip(model(x), other(x), strict=True):
        assert torch.equal(a, b)


@every
def test_odd_sizes_are_refused_with_the_nearest_legal_one(name: str) -> None:
    model = build(preset(name), "meta").eval()
    odd = tuple(n + 1 for n in smallest(model))
    legal = model.legal_size(odd)
    if legal == odd:
        odd = tuple(n + 1 for n in odd)
        legal = model.legal_size(odd)
    with pytest.raises(ConfigError, match=r"^model\.input_size must be .*nearest: ") as error:
        model(torch.empty(1, model.config.in_channels, *odd, device="meta"))
    assert f"nearest: {legal}" in str(error.value)
    assert model.legal_size(legal) == legal
    away = sum(abs(a - b) for a, b in zip(odd, legal, strict=True))
    for moved in itertools.product(range(1 - away, away), repeat=model.dims):
        size = tuple(n + by for n, by in zip(odd, moved, strict=True))
        assert sum(map(abs, moved)) >= away or model.legal_size(size) != size, size
    model(torch.empty(1, model.config.in_channels, *legal, device="meta"))
    with pytest.raises(ConfigError, match=rf"^model\.input_size must be {model.dims} numbers"):
        model(torch.empty(1, model.config.in_channels, *legal, 32, device="meta"))


@every
def test_operations_agree_with_the_counter_of_torch(name: str) -> None:
    model = build(preset(name), "meta").eval()
    x = images(model, "meta")
    for function, analytic in ((model, model.flops), (model.features, model.encoder_flops)):
        with FlopCounterMode(display=False) as counter:
            function(x)
        assert counter.get_total_flops() == pytest.approx(analytic(x.shape[2:]), rel=0.01)


@every
def test_every_parameter_has_a_layer_and_vectors_do_not_decay(name: str) -> None:
    model = build(preset(name), "meta")
    layers = model.parameter_layers()
    assert layers.keys() == {key for key, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    assert {layers[key] for key in model.input_weights} == {0}
    heads = {layers[key] for key in layers if key.startswith(model.head_prefixes or ("-",))}
    assert heads <= {max(layers.values())}
    free = model.no_decay()
    assert {key for key, p in model.named_parameters() if p.ndim <= 1} <= free
    assert 0 < len(free) < len(layers)
