"""Masked reconstruction: only hidden voxels of the scan count, on every kind of backbone, and it can be learnt."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from scenes import noise_scene
from torch import Tensor

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pictures, Pretraining, costs
from pretrain.objectives.masked_reconstruction import MaskedReconstruction, MaskedReconstructionConfig
from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale.batch import Batch
from voxscale.errors import ConfigError
from voxscale.models.build import ModelConfig, build
from voxscale.models.stunet import STUNetConfig
from voxscale.models.swin_unetr import SwinUNETRConfig
from voxscale.models.vit import ViTConfig
from voxscale.seed import torch_generator

PATCH = (16, 16, 16)
STRIDES = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
CNN = STUNetConfig(width=2, depth=1, strides=STRIDES)
VIT = ViTConfig(width=24, depth=4, attention_heads=3, patch=(8, 8, 8))
SMALL = MaskedReconstructionConfig(width=12, depth=1, heads=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers lose more to waiting threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(model: ModelConfig = CNN, config: MaskedReconstructionConfig = SMALL) -> Pretraining:
    backbone = build(model)
    mixture = MixtureConfig(
        weights=WeightsConfig(volume_fusion=0.0, masked_reconstruction=1.0), masked_reconstruction=config
    )
    made = Pretraining(backbone, branches(mixture, backbone))
    made.initialise(torch_generator(0, "weights"))
    return made


def run(made: Pretraining, scene: Scene) -> dict[str, dict[str, Tensor]]:
    return made(Job(made.plans(scene), {"masked_reconstruction": 1.0}))


def with_blanks(values: Tensor) -> Scene:
    """One sample whose last planes were blanked, and which ends before the crop does."""
    batch = Batch(
        voxels=values,
        label=None,
        sizes=torch.tensor([[16.0, 16.0, 12.0]]),
        matrix=torch.eye(3, 4).unsqueeze(0),
        scale=torch.tensor([[1.0, 0.0]]),
        seeds=(5,),
        indices=(0,),
        removed=torch.zeros(1, 1, 16, 16, 12, dtype=torch.uint8).index_fill_(2, torch.arange(12, 16), 1),
    )
    return Scene(batch, PATCH, 1, ViewsConfig(intensity=False))


def test_hidden_voxels_outside_of_the_scan_or_blanked_have_no_gradient_and_the_others_do() -> None:
    made = network()
    values = torch.rand(1, 1, 16, 16, 12, generator=torch_generator(0, "v"))
    plan = made.plans(with_blanks(values))["masked_reconstruction"]
    branch = made.objectives()["masked_reconstruction"]
    assert isinstance(branch, MaskedReconstruction)
    guess = torch.zeros(1, 1, *PATCH, requires_grad=True)
    branch._guess = lambda *_: guess  # type: ignore[method-assign]
    branch.losses({"visible": None}, plan, None).terms["error"].backward()  # type: ignore[dict-item]
    shown = plan.targets[2]
    scan = torch.zeros(1, 1, *PATCH, dtype=torch.bool)
    scan[:, :, :12, :, :12] = True
    assert 0 < (~shown & scan).sum() < scan.sum()
    assert torch.equal(guess.grad != 0, ~shown & scan)


def test_the_loss_does_not_see_what_was_blanked_and_features_not_what_is_hidden() -> None:
    made = network()
    values = torch.rand(1, 1, 16, 16, 12, generator=torch_generator(0, "v"))
    first = run(made, with_blanks(values))
    other = values.clone()
    other[:, :, 12:] = 1 - other[:, :, 12:]
    second = run(made, with_blanks(other))
    assert torch.equal(first["terms"]["error"], second["terms"]["error"])
    scene = with_blanks(values)
    plan = made.plans(scene)["masked_reconstruction"]
    visible, shown = plan.passes["visible"].visible, plan.targets[2]
    images = plan.passes["visible"].images
    changed = torch.where(shown, images, 1 - images)
    pairs = zip(*(made.backbone.visible_features(each, visible) for each in (images, changed)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("model", "decoder", "rate", "steps"),
    [(CNN, "backbone", 1e-2, 50), (CNN, "light", 1e-2, 20), (VIT, "auto", 5e-3, 60)],
    ids=["own", "light", "tokens"],
)
def test_it_learns_on_every_kind_of_backbone_and_decoder(
    model: ModelConfig, decoder: str, rate: float, steps: int
) -> None:
    """Of slopes along one axis: to tell a hidden block one needs to see where the others lie."""
    config = dataclasses.replace(SMALL, decoder=decoder, ratio=0.5)
    made = network(model, config)
    for branch in made.objectives().values():
        branch.check(made.backbone, PATCH)
    optimizer = torch.optim.Adam(made.parameters(), lr=rate)
    slope = torch.linspace(0, 1, 16).expand(2, 1, 16, 16, 16)
    last: dict[str, dict[str, Tensor]] = {}
    for step in range(steps):
        scene = noise_scene()
        scene.crops.images[:] = slope.unsqueeze(1) * torch.tensor([1.0, 0.6]).view(2, 1, 1, 1, 1, 1)
        object.__setattr__(scene.crops, "seeds", (2 * step, 2 * step + 1))
        last = run(made, scene)
        optimizer.zero_grad()
        last["terms"]["error"].backward()
        optimizer.step()
    assert float(last["watched"]["explained"]) > 0.5
    used = "decode" if decoder == "backbone" else "feature"
    missing = {name for name, p in made.named_parameters() if p.grad is None}
    unused = ("upsample_layers.", "conv_blocks_localization.")
    assert missing == {n for n in dict(made.named_parameters()) if used == "feature" and any(u in n for u in unused)}


def test_pictures_show_the_truth_where_it_is_visible() -> None:
    made = network(config=dataclasses.replace(SMALL, normalise=True))
    scene = noise_scene()
    plans = made.plans(scene)
    found = made(Pictures(plans))["pictures"]
    shown = plans["masked_reconstruction"].targets[2][0, 0].numpy()
    assert set(found) == {"masked_whole", "masked_visible", "masked_told"}
    assert (found["masked_whole"] == scene.crop(0).images[0, 0].numpy()).all()
    assert (found["masked_visible"] == found["masked_whole"] * shown).all()
    assert (found["masked_told"] == found["masked_whole"])[shown].all()
    assert not (found["masked_told"] == found["masked_whole"])[~shown].any()


def test_a_vit_pays_for_visible_tokens_only() -> None:
    made = network(VIT, dataclasses.replace(SMALL, ratio=0.75))
    flops, together, alone = costs(made.backbone, made.plans(noise_scene()), 2)
    assert flops == 3 * made.backbone.visible_flops(PATCH, 0.25) < 3 * made.backbone.encoder_flops(PATCH)
    assert together == alone


def test_what_does_not_fit_is_refused() -> None:
    def check(match: str, model: ModelConfig = CNN, patch: tuple[int, int, int] = PATCH, **how: object) -> None:
        backbone = build(model, "meta")
        branch = MaskedReconstruction(dataclasses.replace(SMALL, **how), backbone)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=match):
            branch.check(backbone, patch)

    check("model must be one that can leave out parts", SwinUNETRConfig(width=12))
    check("masked_reconstruction.decoder must be 'light'", VIT, decoder="backbone")
    check(r"block must be a multiple of the model's coarsest stride, \(4, 4, 4\)", block=(4, 4, 6))
    check("block must be a divisor of the patch", block=(12, 4, 4))
    check("block must be smaller than the patch", block=PATCH)
    check("ratio must be less for 64 blocks", ratio=0.99)
    for name, value in (("ratio", 1.0), ("block", (0, 1, 1)), ("width", 0), ("depth", 0), ("heads", 0)):
        with pytest.raises(ConfigError, match=rf"objective.masked_reconstruction.{name} must be"):
            MaskedReconstructionConfig(**{name: value})


def test_a_control_is_to_tell_the_voxels_of_another_sample_from_its_own() -> None:
    scene = noise_scene(2)
    backbone = build(CNN)
    own, another = (
        MaskedReconstruction(dataclasses.replace(SMALL, truth=truth), backbone) for truth in ("own", "another")
    )
    first, second = own.plan(scene), another.plan(scene)
    assert torch.equal(second.targets[0], first.targets[0].flip(0))
    assert torch.equal(second.targets[1], first.targets[1].flip(0))
    assert torch.equal(second.passes["visible"].images, first.passes["visible"].images)
    with pytest.raises(ConfigError, match=r"masked_reconstruction.truth must be 'own' where a rank has one sample"):
        another.plan(noise_scene(1))
