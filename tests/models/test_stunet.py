import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from voxscale.config import from_dict, to_dict
from voxscale.errors import ConfigError
from voxscale.models.build import build
from voxscale.models.layers import instance_norm
from voxscale.models.sizes import strided_size as legal_size
from voxscale.models.stunet import SIZES, STUNet, STUNetConfig
from voxscale.seed import torch_generator

EARLY_STOP = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))
ANISOTROPIC = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1))
PUBLISHED = {"S": (14_596_941, 130), "B": (58_262_669, 130), "L": (440_302_605, 218), "H": (1_457_326_221, 306)}


def closed_formula(w: int, d: int, channels: int, classes: int) -> int:
    """Number of weights with five heads, derived by summing the layers' sizes by hand."""
    return (
        (56776 + 50652 * (d - 1)) * w**2 + (605 + 468 * (d - 1) + 31 * classes + 28 * (channels - 1)) * w + 5 * classes
    )


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def reference_forward(
    state: dict[str, Tensor], x: Tensor, depth: int, strides: tuple[tuple[int, int, int], ...]
) -> list[Tensor]:
    """STU-Net written out as functions of its named weights, in the order of the paper."""

    def conv(name: str, y: Tensor, **options: object) -> Tensor:
        return F.conv3d(y, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(name: str, y: Tensor) -> Tensor:
        mean = y.mean((2, 3, 4), keepdim=True)
        variance = ((y - mean) ** 2).mean((2, 3, 4), keepdim=True)
        shape = (1, -1, 1, 1, 1)
        scaled = (y - mean) / (variance + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"].view(shape) + state[f"{name}.bias"].view(shape)

    def leaky(y: Tensor) -> Tensor:
        return torch.where(y > 0, y, 0.01 * y)

    def stage(name: str, y: Tensor, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        for block in range(depth):
            at, step = f"{name}.{block}", stride if block == 0 else (1, 1, 1)
            inner = leaky(norm(f"{at}.norm1", conv(f"{at}.conv1", y, stride=step, padding=1)))
            inner = norm(f"{at}.norm2", conv(f"{at}.conv2", inner, padding=1))
            y = leaky(inner + (conv(f"{at}.conv3", y, stride=step) if block == 0 else y))
        return y

    skips: list[Tensor] = []
    for i, stride in enumerate(((1, 1, 1), *strides)):
        x = stage(f"conv_blocks_context.{i}", x, stride)
        skips.append(x)
    outputs: list[Tensor] = []
    for u in range(5):
        for axis, factor in zip((2, 3, 4), strides[4 - u], strict=True):
            x = x.repeat_interleave(factor, dim=axis)
        x = torch.cat([conv(f"upsample_layers.{u}.conv", x), skips[4 - u]], 1)
        x = stage(f"conv_blocks_localization.{u}", x)
        outputs.append(conv(f"seg_outputs.{u}", x))
    return outputs[::-1]


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_parameter_and_tensor_counts(size: str) -> None:
    width, depth = SIZES[size]
    model = build(STUNetConfig(width=width, depth=depth, classes=105, heads=5), device="meta")
    assert (count(model), len(model.state_dict())) == PUBLISHED[size]


@pytest.mark.parametrize(("width", "depth"), [(8, 1), *SIZES.values()])
@pytest.mark.parametrize(("channels", "classes"), [(1, 105), (4, 105), (1, 2), (3, 118)])
def test_closed_parameter_formula(width: int, depth: int, channels: int, classes: int) -> None:
    config = STUNetConfig(width=width, depth=depth, in_channels=channels, classes=classes, heads=5)
    model = STUNet(config, device="meta")
    assert count(model) == closed_formula(width, depth, channels, classes)
    assert len(model.state_dict()) == 130 + 88 * (depth - 1)


def test_parameter_split_of_base() -> None:
    model = STUNet(STUNetConfig(width=32, depth=1, classes=105, heads=5), device="meta")
    assert [count(stage) for stage in model.conv_blocks_context] == [
        28_768, 168_384, 672_640, 2_688_768, 10_751_488, 14_421_504,
    ]  # fmt: skip
    assert [count(up) for up in model.upsample_layers] == [262_656, 131_328, 32_896, 8_256, 2_080]
    assert [count(stage) for stage in model.conv_blocks_localization] == [
        21_761_536, 5_441_280, 1_360_768, 340_416, 85_216,
    ]  # fmt: skip
    assert [count(model.seg_outputs[str(u)]) for u in range(5)] == [53_865, 26_985, 13_545, 6_825, 3_465]


def test_released_weight_names_and_shapes_of_base() -> None:
    shapes = {
        k: tuple(v.shape)
        for k, v in STUNet(STUNetConfig(width=32, depth=1, classes=105, heads=5), "meta").state_dict().items()
    }
    assert shapes["conv_blocks_context.0.0.conv1.weight"] == (32, 1, 3, 3, 3)
    assert shapes["conv_blocks_context.0.0.conv3.bias"] == (32,)
    assert shapes["conv_blocks_context.5.0.conv1.weight"] == (512, 512, 3, 3, 3)
    assert shapes["conv_blocks_context.3.0.norm2.weight"] == (256,)
    assert shapes["upsample_layers.0.conv.weight"] == (512, 512, 1, 1, 1)
    assert shapes["upsample_layers.4.conv.weight"] == (32, 64, 1, 1, 1)
    assert shapes["conv_blocks_localization.0.0.conv1.weight"] == (512, 1024, 3, 3, 3)
    assert shapes["conv_blocks_localization.4.0.conv3.weight"] == (32, 64, 1, 1, 1)
    assert shapes["seg_outputs.0.weight"] == (105, 512, 1, 1, 1)
    assert shapes["seg_outputs.4.weight"] == (105, 32, 1, 1, 1)


def test_only_first_blocks_have_a_shortcut_convolution() -> None:
    names = STUNet(STUNetConfig(width=4, depth=3), "meta").state_dict()
    blocks = {name.split(".")[2] for name in names if "conv3" in name}
    assert blocks == {"0"}


@pytest.mark.parametrize("heads", range(6))
def test_heads_are_counted_from_full_resolution(heads: int) -> None:
    model = STUNet(STUNetConfig(width=4, depth=1, classes=3, heads=heads), "meta")
    built = {int(name.split(".")[1]) for name in model.state_dict() if name.startswith("seg_outputs.")}
    assert built == {u for u in range(5) if u >= 5 - heads}
    outputs = model(torch.zeros(2, 1, 64, 64, 64, device="meta"))
    assert [tuple(y.shape) for y in outputs] == [(2, 3, *[64 >> level] * 3) for level in range(heads)]


@pytest.mark.parametrize(("size", "published"), [("S", 0.1299), ("B", 0.5071), ("L", 3.8057), ("H", 12.5977)])
def test_published_multiply_accumulates(size: str, published: float) -> None:
    width, depth = SIZES[size]
    model = STUNet(STUNetConfig(width=width, depth=depth, classes=105, heads=5), "meta")
    macs = 0

    def add(factor: int, layer: nn.Conv3d, output: Tensor) -> None:
        nonlocal macs
        macs += factor * sum(p.numel() for p in layer.parameters()) * output[0, 0].numel()

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv3d):
            # The published count is of pointwise convolutions after the enlargement, on eight times the voxels.
            factor = 8 if name.startswith("upsample_layers") else 1
            layer.register_forward_hook(lambda layer, _, output, factor=factor: add(factor, layer, output))
    model(torch.zeros(1, 1, 128, 128, 128, device="meta"))
    assert macs / 1e12 == pytest.approx(published, abs=6e-5)


@pytest.mark.parametrize(("depth", "strides"), [(1, EARLY_STOP), (2, ANISOTROPIC)])
def test_forward_equals_the_written_out_network(depth: int, strides: tuple) -> None:
    config = STUNetConfig(width=2, depth=depth, in_channels=2, classes=3, heads=5, strides=strides)
    model = STUNet(config).double()
    generator = torch_generator(1)
    for parameter in model.parameters():  # biases and norms away from their neutral start
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, 2, 16, 32, 16, generator=generator, dtype=torch.float64)
    want = reference_forward(model.state_dict(), x, depth, strides)
    got = model(x)
    assert len(got) == 5
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    decoded = model.decode(x)
    torch.testing.assert_close(model.seg_outputs["4"](decoded[0]), got[0])
    assert [tuple(y.shape[1:2]) for y in decoded] == [(2,), (4,), (8,), (16,), (32,)]


def test_features_have_six_stages_full_resolution_first() -> None:
    model = STUNet(STUNetConfig(width=3, depth=1), "meta")
    shapes = [tuple(y.shape) for y in model.features(torch.zeros(1, 1, 64, 96, 64, device="meta"))]
    assert shapes == [(1, c, 64 >> i, 96 >> i, 64 >> i) for i, c in enumerate((3, 6, 12, 24, 48, 48))]


def test_small_patch_trains_with_strides_that_stop_early() -> None:
    model = STUNet(STUNetConfig(width=4, depth=1, classes=2, heads=2, strides=EARLY_STOP))
    outputs = model(torch.randn(1, 1, 32, 48, 32, generator=torch_generator(0)))
    sum(y.square().mean() for y in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.conv_blocks_context[5][0].conv2.weight.grad.abs().max() > 0


def test_channels_last_gives_the_same_output() -> None:
    model = STUNet(STUNetConfig(width=4, depth=1, classes=2, heads=3, strides=EARLY_STOP)).double()
    x = torch.randn(2, 1, 32, 16, 16, generator=torch_generator(0), dtype=torch.float64)
    want = model(x)
    got = model.to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(80, 64, 64), (64, 64, 65), (16, 32, 32)])
def test_size_that_does_not_fit_the_strides_is_refused(size: tuple[int, int, int]) -> None:
    model = STUNet(STUNetConfig(width=2, depth=1, classes=2, heads=1), "meta")
    legal = legal_size(size, model.config.strides)
    with pytest.raises(ConfigError, match=r"model\.input_size must be a multiple of \(32, 32, 32\)") as error:
        model(torch.zeros(1, 1, *size, device="meta"))
    assert str(legal) in str(error.value)
    model(torch.zeros(1, 1, *legal, device="meta"))


@pytest.mark.parametrize("training", [True, False])
def test_single_voxel_bottleneck_is_refused(training: bool) -> None:
    model = STUNet(STUNetConfig(width=2, depth=1), "meta").train(training)
    with pytest.raises(
        ConfigError, match=r"more than one voxel at the deepest stage .*\(32, 32, 64\).* not \(32, 32, 32\)"
    ):
        model.features(torch.zeros(2, 1, 32, 32, 32, device="meta"))


@pytest.mark.parametrize(
    ("size", "strides", "legal"),
    [
        ((80, 80, 80), ((2, 2, 2),) * 5, (96, 96, 96)),
        ((79, 64, 1), ((2, 2, 2),) * 5, (64, 64, 32)),
        ((32, 48, 32), EARLY_STOP, (32, 48, 32)),
        ((20, 33, 40), ANISOTROPIC, (20, 32, 48)),
        ((7, 7, 7), ((3, 1, 1),) + ((1, 1, 1),) * 4, (6, 7, 7)),
    ],
)
def test_legal_size_by_hand(size: tuple, strides: tuple, legal: tuple) -> None:
    assert legal_size(size, strides) == legal


@given(
    size=st.tuples(*[st.integers(1, 300)] * 3),
    strides=st.tuples(*[st.tuples(*[st.integers(1, 3)] * 3)] * 5),
)
def test_legal_size_is_legal_and_none_is_nearer(size: tuple, strides: tuple) -> None:
    legal = legal_size(size, strides)
    assert legal_size(legal, strides) == legal
    product = [math.prod(axis) for axis in zip(*strides, strict=True)]
    deepest = [n // factor for n, factor in zip(legal, product, strict=True)]
    assert all(n % factor == 0 for n, factor in zip(legal, product, strict=True))
    assert max(deepest) > 1
    near = itertools.product(*[[max(n // f + i, 1) * f for i in range(3)] for n, f in zip(size, product, strict=True)])
    able = [other for other in near if other != tuple(product)]
    ways = [sum(abs(n - want) for n, want in zip(other, size, strict=True)) for other in [legal, *able]]
    assert ways[0] == min(ways)


def test_initialisation_is_he_normal_and_reproducible() -> None:
    model = STUNet(STUNetConfig(width=16, depth=1, classes=3, heads=1))
    model.initialise(torch_generator(7))
    weight = model.conv_blocks_context[3][0].conv2.weight
    assert weight.shape == (128, 128, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / 1.0001 / (128 * 27)) ** 0.5, rel=0.01)  # 0.0241
    assert abs(weight.mean().item()) < 2e-4
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".norm" in name:
            assert (parameter == 1).all(), name
    other = STUNet(model.config, "meta").to_empty(device="cpu")
    other.initialise(torch_generator(7))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    other.initialise(torch_generator(8))
    assert not torch.equal(model.conv_blocks_context[0][0].conv1.weight, other.conv_blocks_context[0][0].conv1.weight)


def test_building_leaves_the_global_generator_alone_and_is_repeatable() -> None:
    before = torch.get_rng_state()
    config = STUNetConfig(width=2, depth=1, classes=2, heads=1)
    first, second = STUNet(config), STUNet(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.conv_blocks_context[0][0].conv1.weight.std() > 0


def test_default_device_context_is_honoured() -> None:
    with torch.device("meta"):
        assert next(STUNet(STUNetConfig(width=2, depth=1)).parameters()).is_meta


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"width": 0}, "model.width"),
        ({"depth": 0}, "model.depth"),
        ({"in_channels": 0}, "model.in_channels"),
        ({"heads": 6}, "model.heads"),
        ({"heads": -1}, "model.heads"),
        ({"heads": 1, "classes": 0}, "model.classes"),
        ({"classes": 257}, "model.classes"),
        ({"strides": ((2, 2, 2),) * 4}, "model.strides"),
        ({"strides": ((0, 2, 2),) * 5}, "model.strides"),
        ({"strides": ((4, 2, 2),) * 5}, "model.strides"),
    ],
)
def test_bad_config_is_refused(changes: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must be"):
        STUNetConfig(**{"width": 8, "depth": 1, **changes})


def test_config_goes_through_json() -> None:
    config = STUNetConfig(width=8, depth=2, classes=3, heads=2, strides=ANISOTROPIC)
    assert from_dict(STUNetConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match=r"config\.kind"):
        from_dict(STUNetConfig, to_dict(config) | {"kind": "unet"})


@pytest.mark.parametrize("batch", [1, 2])
def test_channels_last_norm_equals_the_instance_norm_of_torch(batch: int) -> None:
    norm = nn.InstanceNorm3d(5, affine=True).double()
    nn.init.normal_(norm.weight, generator=torch_generator(1))
    x = torch.randn(batch, 5, 3, 4, 6, generator=torch_generator(0), dtype=torch.float64)
    last = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    want = norm(x.requires_grad_())
    got = instance_norm(last, norm)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(got, want)
    (got**3).sum().backward()
    (want**3).sum().backward()
    torch.testing.assert_close(last.grad, x.grad)


@pytest.mark.parametrize(("dtype", "side", "most"), [(torch.float32, 64, 1e-6), (torch.bfloat16, 192, 1e-3)])
def test_channels_last_norm_is_as_exact_as_the_plain_one(dtype: torch.dtype, side: int, most: float) -> None:
    """torch's channels-last batch norm adds up voxels one by one: the deviation of many of them comes out wrong."""
    x = torch.randn(1, 2, side, side, side, generator=torch_generator(0)).to(dtype)
    norm = nn.InstanceNorm3d(2, affine=True).to(dtype)
    with torch.no_grad():
        found = instance_norm(x.contiguous(memory_format=torch.channels_last_3d), norm).double()
    truth = torch.nn.functional.instance_norm(x.double())
    # The share of the truth in what is found: rounding of single voxels averages out, a wrong deviation does not.
    assert float((found * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=most)
