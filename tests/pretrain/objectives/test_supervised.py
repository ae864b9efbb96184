"""Supervised pretraining over partly labelled sets: losses by hand, and only what a set annotates is taught."""

from pathlib import Path

import pytest
import torch
from scenes import noise_scene
from tests_stores import make_store
from torch.nn import functional as F

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pictures, Pretraining
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.supervised import Supervised, SupervisedConfig, partial_loss
from pretrain.scene import Labelled, Scene
from voxscale.augment.brightness import BrightnessConfig
from voxscale.augment.gamma import GammaConfig
from voxscale.augment.noise import NoiseConfig
from voxscale.batch import collate
from voxscale.contract import InputContract
from voxscale.errors import ConfigError
from voxscale.losses.dice import soft_dice_loss
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.models.vit import ViTConfig
from voxscale.seed import torch_generator
from voxscale.stream.labelled import LabelledStream

PATCH = (16, 16, 16)
MODEL = STUNetConfig(width=2, depth=1, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
PLAIN = {
    "noise": NoiseConfig(probability=0.0),
    "brightness": BrightnessConfig(probability=0.0),
    "gamma": GammaConfig(probability=0.0),
}


def test_loss_of_a_batch_is_the_mean_over_samples_of_dice_and_cross_entropy_of_their_own_classes() -> None:
    generator = torch_generator(0)
    fine = torch.randn(2, 4, 4, 4, 4, generator=generator)
    coarse = torch.randn(2, 4, 2, 2, 2, generator=generator)
    target = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    target[0, :2], target[1, 2:] = 2, 1
    target[1, 0] = 3
    found = partial_loss([fine, coarse], target, [[2], [1, 3]])
    want: list[list[float]] = []
    for row, classes in ((0, [2]), (1, [1, 3])):
        parts: list[list[float]] = []
        for logits, step in ((fine, 1), (coarse, 2)):
            p = logits[row].softmax(0)
            rest = [c for c in range(4) if c not in classes]
            merged = torch.stack([p[rest].sum(0), *(p[c] for c in classes)]).unsqueeze(0)
            truth = torch.zeros_like(target[row])
            for number, c in enumerate(classes, 1):
                truth[target[row] == c] = number
            truth = truth[::step, ::step, ::step].unsqueeze(0)
            dice = soft_dice_loss(merged.log(), truth, pooled=False, background=False)
            parts.append([dice.item(), F.nll_loss(merged.log(), truth.long()).item()])
        want.append([(2 * a + b) / 3 for a, b in zip(*parts, strict=True)])
    assert found.terms["dice"].item() == pytest.approx((want[0][0] + want[1][0]) / 2, rel=1e-5)
    assert found.terms["cross_entropy"].item() == pytest.approx((want[0][1] + want[1][1]) / 2, rel=1e-5)


def test_a_set_gives_no_class_that_it_does_not_annotate_a_gradient_of_its_own() -> None:
    """Dice and cross-entropy together: all that is merged has one gradient, in shares of the probabilities."""
    logits = torch.randn(1, 4, 3, 3, 3, generator=torch_generator(1)).requires_grad_()
    target = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    target[0, 0] = 1
    partial_loss([logits], target, [[1]]).total.backward()
    share = logits.detach().softmax(1)
    each = logits.grad / share
    for other in (2, 3):
        torch.testing.assert_close(each[:, other], each[:, 0], rtol=1e-4, atol=1e-5)
    assert (logits.grad[:, 2][target == 0] < 0).all()  # drawn up with the background, not pushed down by it


def test_hard_dice_counts_annotated_classes_alone() -> None:
    target = torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8).view(1, 1, 1, 4)
    logits = torch.full((1, 3, 1, 1, 4), -5.0)
    for place, guess in enumerate((1, 0, 2, 2)):
        logits[0, guess, 0, 0, place] = 5.0
    watched = partial_loss([logits], target, [[1]]).watched["label_dice"]
    assert watched.item() == pytest.approx(2 * 1 / (1 + 2))
    assert partial_loss([logits], target, [[1, 2]]).watched["label_dice"].item() == pytest.approx(2 / 3 / 2)


def test_it_is_a_branch_beside_others_and_learns(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    make_store(tmp_path / "a", 2, labelled=True)
    config = MixtureConfig(
        weights=WeightsConfig(supervised=1.0),
        volume_fusion=VolumeFusionConfig(block_min=2, block_max=6),
        supervised=SupervisedConfig(sets=(tmp_path / "a",), heads=2, **PLAIN),
    )
    backbone = build(MODEL)
    network = Pretraining(backbone, branches(config, backbone))
    network.initialise(torch_generator(0, "weights"))
    own = config.supervised
    stream = LabelledStream(own.read(), PATCH, InputContract(spacing=(2.0, 1.5, 1.5)), own.stream, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    plain = noise_scene(crops=2)
    losses: list[float] = []
    for step in range(25):
        indices = (2 * step, 2 * step + 1)
        batch = collate([stream.sample(index)[0][0] for index in indices])
        scene = Scene(plain.batch, PATCH, 2, plain.config, labelled=Labelled(batch, (0, 0)))
        out = network(Job(network.plans(scene), config.weights_at(0.0)))
        assert out["terms"].keys() == {
            f"{n}/{t}"
            for n, t in (
                ("volume_fusion", "dice"),
                ("volume_fusion", "ce"),
                ("supervised", "dice"),
                ("supervised", "cross_entropy"),
            )
        }
        total = out["terms"]["supervised/cross_entropy"] + out["terms"]["supervised/dice"]
        optimizer.zero_grad()
        (total + out["terms"]["volume_fusion/ce"]).backward()
        optimizer.step()
        losses.append(total.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    pictures = network(Pictures(network.plans(scene)))["pictures"]
    assert pictures["supervised_label"].shape == pictures["supervised_prediction"].shape == PATCH
    torch.set_num_threads(threads)
    vit = build(ViTConfig(width=24, depth=4, attention_heads=3, patch=(8, 8, 8)), "meta")
    refused = Supervised(own, vit)
    with pytest.raises(ConfigError, match="model must be one with a decoder for supervised pretraining"):
        refused.check(vit, PATCH)
    with pytest.raises(ConfigError, match="objective.supervised.sets must be at least one store"):
        branches(MixtureConfig(weights=WeightsConfig(supervised=1.0)), backbone)
