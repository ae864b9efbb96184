"""Files as the reference classes write them, read into our backbones: equal outputs, and every name accounted for."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dynamic_network_architectures.architectures.unet as unet
import medim
import monai.networks.nets
import numpy as np
import pytest
import torch
from golden_weights import made_input, made_weights
from monai.networks.nets.swin_unetr import filter_swinunetr
from pymic.net.net3d.fmunetv3 import FMUNetV3
from torch import Tensor, nn

from configs.models import lvm_med_vit_b
from voxscale.errors import CheckpointError, ConfigError
from voxscale.models.build import adapt, build
from voxscale.models.interface import Backbone
from voxscale.models.optional import load
from voxscale.models.released import lvm_med
from voxscale.models.released.load import FORMS, Form, Released, read_released, transfer_released
from voxscale.models.released.report import KeyReport
from voxscale.models.swin_block import mis_fm_positions
from voxscale.seed import torch_generator


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomised(net: nn.Module) -> nn.Module:
    """Every weight and running statistic of a reference network drawn, so that none hides behind a zero."""
    draw = torch_generator(7)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * 0.08 + (1.0 if p.ndim == 1 else 0.0))
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=draw) + 0.5)
    return net.eval()


def fit(path: Path, content: object, form: Form, **changes: Any) -> tuple[Released, Backbone, KeyReport]:
    """Save, read, build what the file says and transfer."""
    torch.save(content, path)
    released = read_released(path, form)
    model = build(dataclasses.replace(released.config, **changes)).eval()
    report = transfer_released(model, released, fresh=())
    check_sums(report, content, model)
    return released, model, report


def check_sums(report: KeyReport, content: Any, model: Backbone) -> None:
    counts = report.counts()
    tensors = next(v for v in [*content.values(), content] if isinstance(v, dict) and is_weights(v))
    own = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    assert counts["file"] == len(tensors)
    assert counts["network"] == len(own)
    assert len({f.given for f in report.fates if f.given}) == counts["file"]
    assert {f.own for f in report.fates if f.own} == own
    every = sum(n for outcome, n in counts.items() if outcome not in ("file", "network"))
    assert every == len(report.fates)
    assert counts["file"] == every - counts.get("reinitialised", 0)
    plain = report.to_dict()
    assert len(plain["loaded"]) + len(plain["reinitialised"]) == counts["network"]
    assert len(report.table().splitlines()) == every


def is_weights(values: dict[str, Any]) -> bool:
    return all(isinstance(v, Tensor) for v in values.values())


def volume(*size: int, channels: int = 1) -> Tensor:
    return torch.randn(1, channels, *size, generator=torch_generator(3))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def stunet_file(depth: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    """A `.model` with all that nnU-Net v1 puts into it."""
    module = importlib.import_module("medim.models.stu_net")
    net = module.STUNet(
        num_classes=5,
        depth=[depth] * 6,
        dims=[4 * n for n in (1, 2, 4, 8, 16, 16)],
        pool_op_kernel_sizes=module.DEFAULT_STRIDES,
        conv_kernel_sizes=[[3, 3, 3]] * 6,
        enable_deep_supervision=True,
    )
    net = randomised(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.99)
    sum(p.sum() for p in net.parameters()).backward()
    kept = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    net.load_state_dict(kept)
    content = {
        "epoch": 4000,
        "state_dict": net.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(-0.5)], [np.float32(0.1)], [], [np.array([0.5, 0.7])]),
        "best_stuff": (np.float64(1.0), None, np.float64(2.0)),
        "amp_grad_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
    }
    return net, content


@pytest.mark.parametrize("depth", [1, 2])
def test_stunet_gives_the_outputs_of_medim(tmp_path: Path, depth: int) -> None:
    theirs, content = stunet_file(depth)
    content["state_dict"] = {f"module.{key}": tensor for key, tensor in content["state_dict"].items()}
    released, model, report = fit(tmp_path / "small_ep4k.model", content, "stunet")
    assert (released.config.width, released.config.depth, released.config.classes) == (4, depth, 5)
    number = 130 + 88 * (depth - 1)
    assert report.counts() == {"file": number, "network": number, "loaded": number}
    assert "numpy._core.multiarray.scalar" in report.inert
    x = volume(32, 32, 64)
    with torch.no_grad():
        for ours, reference in zip(model(x), theirs(x), strict=True):
            close(ours, reference)


def test_stunet_small_of_medim_is_recognised(tmp_path: Path) -> None:
    theirs = randomised(medim.create_model("STU-Net-S"))
    released, model, _ = fit(tmp_path / "s.model", {"state_dict": theirs.state_dict()}, "stunet", heads=1)
    assert (released.config.width, released.config.depth, released.config.classes) == (16, 1, 105)
    x = volume(32, 32, 64)
    with torch.no_grad():
        close(model(x)[0], theirs(x))


def test_heads_of_other_classes_start_anew(tmp_path: Path) -> None:
    _, content = stunet_file()
    _, _, report = fit(tmp_path / "s.model", content, "stunet", classes=3, heads=2)
    counts = report.counts()
    assert (counts["loaded"], counts["mismatch"], counts["unused"]) == (120, 4, 6)
    notes = {fate.own: fate.note for fate in report.fates if fate.outcome == "mismatch"}
    assert notes["seg_outputs.4.weight"] == "(5, 4, 1, 1, 1) for (3, 4, 1, 1, 1)"


@pytest.mark.parametrize("divide", [True, False])
def test_images_of_several_channels_repeat_the_first_convolutions(tmp_path: Path, divide: bool) -> None:
    theirs, content = stunet_file()
    torch.save(content, tmp_path / "s.model")
    released = read_released(tmp_path / "s.model", "stunet")
    model = build(dataclasses.replace(released.config, in_channels=4)).eval()
    report = transfer_released(model, released, fresh=(), divide=divide)
    assert report.counts()["repeated"] == 2
    x = volume(32, 32, 64)
    many = x.expand(-1, 4, -1, -1, -1) if divide else torch.cat([x, torch.zeros(1, 3, 32, 32, 64)], 1)
    with torch.no_grad():
        close(model(many)[0], theirs(x)[0])


@pytest.mark.parametrize("residual", [True, False])
def test_nnssl_gives_the_features_of_nnu_nets_encoder(tmp_path: Path, residual: bool) -> None:
    channels, blocks = (4, 6, 8, 10, 12, 12), (1, 2, 2, 1, 1, 1)
    kind = unet.ResidualEncoderUNet if residual else unet.PlainConvUNet
    strides = [[1] * 3, *[[2] * 3] * 5]
    more = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "conv_bias": True}
    more |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    theirs = randomised(kind(1, 6, channels, nn.Conv3d, 3, strides, blocks, 1, 1, **more))
    stem = "encoder.stem" if residual else "encoder.stages.0"
    plan = {"key_to_encoder": "encoder.stages", "key_to_stem": stem, "keys_to_in_proj": [f"{stem}.convs.0.conv"]}
    content = {"network_weights": dict(theirs.state_dict()), "nnssl_adaptation_plan": plan}
    released, model, report = fit(tmp_path / "checkpoint_final.pth", content, "nnssl")
    assert (released.config.channels, released.config.blocks) == (channels, blocks)
    counts = report.counts()
    assert "mismatch" not in counts
    assert counts["duplicate"] == sum(
        ".all_modules." in key for key in content["network_weights"] if key.startswith("encoder.")
    )
    x = volume(64, 64, 64)
    with torch.no_grad():
        for ours, reference in zip(model.features(x), theirs.encoder(x), strict=True):
            close(ours, reference)


def test_nnssl_plan_says_where_the_encoder_is(tmp_path: Path) -> None:
    theirs = unet.ResidualEncoderUNet(1, 6, (4,) * 6, nn.Conv3d, 3, [[1] * 3, *[[2] * 3] * 5], (1,) * 6, 1, 1)
    names = {key.replace("encoder.", "net.", 1): t for key, t in theirs.encoder.state_dict(prefix="encoder.").items()}
    plan = {"key_to_encoder": "net.stages", "key_to_stem": "net.stem"}
    torch.save({"network_weights": names, "nnssl_adaptation_plan": plan}, tmp_path / "c.pth")
    assert len(read_released(tmp_path / "c.pth", "nnssl").named.names) == len(names)


def swin() -> tuple[nn.Module, dict[str, Tensor]]:
    theirs = randomised(monai.networks.nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=12))
    return theirs, dict(theirs.swinViT.state_dict())


def hidden(net: Any, x: Tensor) -> list[Tensor]:
    return net.swinViT(x, True)


def test_swin_unetr_takes_what_monai_takes(tmp_path: Path) -> None:
    theirs, weights = swin()
    names = {f"module.{key.replace('.mlp.linear', '.mlp.fc')}": tensor for key, tensor in weights.items()}
    content = {"state_dict": {**names, "module.rotation_head.weight": torch.zeros(4, 2)}}
    released, model, report = fit(tmp_path / "model_swinvit.pt", content, "swin_unetr")
    assert (released.config.width, released.config.window) == (12, 7)
    assert report.counts()["loaded"] == len(weights)
    assert report.counts()["unused"] == 1
    oracle = monai.networks.nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=12).eval()
    oracle.load_from(content)
    x = volume(64, 32, 32)
    with torch.no_grad():
        for ours, loaded, written in zip(hidden(model, x), hidden(oracle, x), hidden(theirs, x), strict=True):
            close(ours, loaded)
            close(ours, written)


def test_swin_unetr_names_are_those_of_monais_filter(tmp_path: Path) -> None:
    _, weights = swin()
    names: dict[str, Tensor] = {"encoder.mask_token": torch.zeros(1, 1, 12), "encoder.norm.weight": torch.zeros(96)}
    for key, tensor in weights.items():
        deeper = key.replace(".0.", ".0.0.", 1) if key.startswith("layers") else key
        names[f"encoder.{deeper}"] = tensor
    released, _, report = fit(tmp_path / "ssl.pth", {"model": names}, "swin_unetr")
    expected = {key: found[0] for key in names if (found := filter_swinunetr(key, names[key])) is not None}
    assert dict(released.named.names) == expected
    assert report.counts()["unused"] == 2


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_fmunet_gives_the_outputs_of_pymic(tmp_path: Path, flat: int) -> None:
    params = {"in_chns": 1, "class_num": 5, "feature_chns": [2, 3, 4, 6, 8], "res_mode": flat}
    theirs = randomised(FMUNetV3(params))
    content = {
        "iteration": 80000,
        "valid_pred": 0.9,
        "model_state_dict": theirs.state_dict(),
        "optimizer_state_dict": {},
    }
    released, model, report = fit(tmp_path / "fmunet.pt", content, "misfm")
    assert released.config.flat_levels == flat
    assert report.counts()["loaded"] == report.counts()["file"] == report.counts()["network"]
    x = volume(32, 32, 32)
    with torch.no_grad():
        for ours, reference in zip(model(x), theirs(x), strict=True):
            close(ours, reference)


def test_pctnet_gives_the_recorded_outputs_of_mis_fm(tmp_path: Path) -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "pctnet.json").read_text())
    index = mis_fm_positions(6)
    assert hashlib.sha256(index.numpy().tobytes()).hexdigest() == golden["index_sha256"]
    content = {"iteration": 1, "valid_pred": 0.5, "model_state_dict": made_weights(golden["shapes"], index)}
    released, model, report = fit(tmp_path / "pctnet.pt", content, "misfm")
    config = released.config
    assert (list(config.channels), config.window, config.mode) == (golden["channels"], 6, 1)
    counts = report.counts()
    assert counts["file"] == len(golden["shapes"]) == 684  # as published
    assert counts["loaded"] == counts["network"]
    assert counts["unused"] == 684 - counts["loaded"]
    x = made_input(golden["input"])
    with torch.no_grad():
        for ours, theirs in zip(model(x), golden["outputs"], strict=True):
            close(ours.flatten()[:: theirs["every"]], torch.tensor(theirs["values"]))


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
def test_lvm_med_resnet_gives_the_features_of_torchvision(tmp_path: Path, prefix: str) -> None:
    load("timm", "timm")  # so that torchvision can be imported whatever its operators do
    theirs = randomised(importlib.import_module("torchvision.models").resnet50())
    content = {f"{prefix}{key}": tensor for key, tensor in theirs.state_dict().items()}
    _, model, report = fit(tmp_path / "lvmmed_resnet.torch", content, "lvm_med")
    assert report.counts()["unused"] == 2  # the classifier
    x = torch.randn(1, 3, 64, 64, generator=torch_generator(3))
    with torch.no_grad():
        close(model.features(x)[-1], nn.Sequential(*list(theirs.children())[:-2])(x))
        gray = build(dataclasses.replace(model.config, in_channels=1)).eval()
        report = transfer_released(gray, read_released(tmp_path / "lvmmed_resnet.torch", "lvm_med"), fresh=())
        assert report.counts()["summed"] == 1
        first = theirs.conv1(x[:, :1].expand(-1, 3, -1, -1))
        close(gray.get_submodule("net.conv1")(x[:, :1]), first)


@pytest.mark.parametrize("prefix", ["", "model.", "image_encoder."])
@pytest.mark.parametrize("which", ["as released", "with positions"])
def test_lvm_med_vit_gives_the_recorded_outputs(tmp_path: Path, prefix: str, which: str) -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "lvm_med_vit.json").read_text())
    small, want = golden["small"], golden["outputs"][which]
    weights = made_weights(want["shapes"], torch.empty(0))
    content = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    if prefix == "image_encoder.":
        content["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    released, model, report = fit(tmp_path / "lvmmed_vit.pth", content, "lvm_med")
    config = released.config
    assert (config.depth, config.width, config.attention_heads) == (4, 16, 2)
    assert (config.window, list(config.global_blocks), config.places) == (3, small["global_blocks"], 7)
    assert config.positions == (which == "with positions")
    counts = report.counts()
    assert counts["loaded"] == counts["network"] == len(weights)
    assert counts.get("unused", 0) == len(content) - len(weights)
    with torch.no_grad():
        ours = model(made_input([1, 3, small["img_size"], small["img_size"]]))[-1]
    close(ours.flatten()[:: want["every"]], torch.tensor(want["values"]))


def test_lvm_med_vit_b_fits_by_every_recorded_name_and_shape() -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "lvm_med_vit.json").read_text())
    made = {name: torch.empty(shape, device="meta") for name, shape in golden["shapes"].items()}
    named = lvm_med.read(made)
    assert not named.left
    config = lvm_med.config(named.by_own_name())
    assert config == lvm_med_vit_b()
    own = {name: tuple(p.shape) for name, p in build(config, "meta").named_parameters()}
    assert own == {key: tuple(tensor.shape) for key, tensor in named.by_own_name().items()}
    assert sum(tensor.numel() for tensor in made.values()) == pytest.approx(86.0e6, rel=0.01)  # as its README says


def small() -> dict[str, Any]:
    return stunet_file()[1]


def test_weights_that_do_not_fit_change_nothing_unless_partial(tmp_path: Path) -> None:
    content = small()
    lost, broken = "conv_blocks_context.2.0.norm1.bias", "upsample_layers.1.conv.weight"
    del content["state_dict"][lost]
    content["state_dict"][broken] = torch.zeros(7, 64, 1, 1, 1)
    content["state_dict"]["conv_blocks_context.9.new"] = torch.zeros(2)
    torch.save(content, tmp_path / "s.model")
    released = read_released(tmp_path / "s.model", "stunet")
    model = build(released.config)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"differ in .*\(7, 64, 1, 1, 1\) for .* and|no such weight") as error:
        transfer_released(model, released, fresh=())
    for name in (lost, broken, "conv_blocks_context.9.new"):
        assert name in str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    report = transfer_released(model, released, fresh=(), partial=True)
    counts = report.counts()
    assert (counts["mismatch"], counts["unknown"], counts["reinitialised"]) == (1, 1, 1)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in (lost, broken))
    assert "mismatch" in report.text()


def test_fresh_parts_start_anew(tmp_path: Path) -> None:
    content = small()
    torch.save(content, tmp_path / "s.model")
    released = read_released(tmp_path / "s.model", "stunet")
    model = build(adapt(released.config, in_channels=1, classes=5, heads=2, strides=released.config.strides))
    before = model.state_dict()["seg_outputs.4.weight"].clone()
    report = transfer_released(model, released, fresh=model.head_prefixes)
    assert torch.equal(model.state_dict()["seg_outputs.4.weight"], before)
    assert report.counts() == {"file": 130, "network": 124, "loaded": 120, "reinitialised": 4, "unused": 10}


def test_other_networks_are_refused_even_partially(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "s.model")
    released = read_released(tmp_path / "s.model", "stunet")
    other = build(dataclasses.replace(released.config, width=3))
    with pytest.raises(CheckpointError, match="not in none"):
        transfer_released(other, released, fresh=("seg_outputs.",), partial=True)
    with pytest.raises(CheckpointError, match="meta"):
        transfer_released(build(released.config, "meta"), released, fresh=())


def test_unknown_formats_are_refused_with_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose from stunet, nnssl, swin_unetr, misfm, lvm_med"):
        read_released(tmp_path / "x", "nnunet")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [{"other": torch.zeros(2)}, {"state_dict": {}}, [1, 2], {"state_dict": 3}])
def test_files_of_another_format_are_refused(tmp_path: Path, form: Form, content: object) -> None:
    torch.save(content, tmp_path / "x")
    with pytest.raises(CheckpointError, match="must hold") as error:
        read_released(tmp_path / "x", form)
    assert str(tmp_path) not in str(error.value)
