"""Several branches over one backbone: passes are shared, losses are those of each alone, gradients are balanced."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Job, Pictures, Pretraining, costs, wanted
from pretrain.objectives import graph_pictures
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.graph_config import GraphMatchingConfig, info_nce_twin
from pretrain.objectives.graph_matching import GraphMatching, positions_mm
from pretrain.objectives.interface import Objective, Pass, Plan, Seen
from pretrain.objectives.volume_fusion import volume_fusion
from pretrain.scene import Scene
from pretrain.views import ViewsConfig
from voxscale.batch import Batch, Losses
from voxscale.engine.config import OptimConfig
from voxscale.engine.deepspeed import set_learning_rate
from voxscale.engine.optim import build_optimizer
from voxscale.errors import ConfigError
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.samples import OWN, Samples
from voxscale.seed import torch_generator

PATCH = (16, 16, 16)
STRIDES = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
MODEL = STUNetConfig(width=2, depth=1, strides=STRIDES)
FUSION = VolumeFusionConfig(block_min=2, block_max=6)


class Brightness(Objective):
    """Tells the mean of the first crop from the deepest features."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.head, self.scale = nn.Linear(channels, 1), scale

    def initialise(self, generator: torch.Generator) -> None:
        """Draw."""
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator))

    def plan(self, scene: Scene) -> Plan:
        """Look at the first crop."""
        images = scene.crop(0).images
        return Plan({"crop": Pass(images)}, images.mean((1, 2, 3, 4)))

    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: Objective | None, over: Samples = OWN) -> Losses:
        """Squared error."""
        guess = self.head(seen["crop"].features[-1].mean((2, 3, 4)))[:, 0]
        return Losses({"error": self.scale * (guess - plan.targets).square().mean()}, {"error": 1.0}, {})


def a_scene(
    samples: int = 2, crops: int = 2, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), known: bool = False
) -> Scene:
    n = samples * crops
    batch = Batch(
        voxels=torch.rand(n, 1, 20, 20, 20, generator=torch_generator(3, "scene")),
        label=None,
        sizes=torch.full((n, 3), 20.0),
        matrix=torch.tensor([[1.0, 0, 0, 2], [0, 1, 0, 2], [0, 0, 1, 2]]).repeat(n, 1, 1),
        scale=torch.tensor([[1.0, 0.0]]).repeat(n, 1),
        seeds=tuple(range(n)),
        indices=tuple(i // crops for i in range(n)),
        mm=torch.tensor([[2.0, 0, 0, 4], [0, 1, 0, 2], [0, 0, 1, 2]]).repeat(n, 1, 1) if known else None,
        scans=tuple(i // crops % 3 for i in range(n)),
    )
    return Scene(batch, PATCH, crops, ViewsConfig(intensity=False), spacing)


def a_network(*scales: float) -> Pretraining:
    backbone = build(MODEL)
    made: dict[str, Objective] = dict(branches(MixtureConfig(volume_fusion=FUSION), backbone))
    made |= {f"brightness{n}": Brightness(backbone.levels[-1].channels, scale) for n, scale in enumerate(scales)}
    network = Pretraining(backbone, made)
    network.initialise(torch_generator(0, "weights"))
    return network


def run(network: Pretraining, scene: Scene, **job: bool) -> dict[str, dict[str, Tensor]]:
    plans = network.plans(scene)
    return network(Job(plans, dict.fromkeys(plans, 1.0), **job))


def test_each_loss_is_that_of_the_branch_alone():
    network, scene = a_network(1.0), a_scene()
    out = run(network, scene)
    head = network.objectives()["volume_fusion"].head
    alone = volume_fusion(lambda x: head(network.backbone.decode(x)[0]), scene.all_crops(2), FUSION)
    for term, value in alone.terms.items():
        assert out["terms"][f"volume_fusion/{term}"].item() == pytest.approx(value.item(), abs=1e-6)
    branch = network.objectives()["brightness0"]
    features = network.backbone.features(scene.crop(0).images)[-1].mean((2, 3, 4))
    error = (branch.head(features)[:, 0] - scene.crop(0).images.mean((1, 2, 3, 4))).square().mean()
    assert out["terms"]["brightness0/error"].item() == pytest.approx(error.item(), abs=1e-6)


def test_a_pass_that_two_branches_want_is_made_once():
    network, scene = a_network(1.0, 2.0), a_scene()
    plans, counts = network.plans(scene), []
    own = network.backbone.features

    def counting(x: Tensor) -> list[Tensor]:
        counts.append(len(x))
        return own(x)

    network.backbone.features = counting
    network(Job(plans, dict.fromkeys(plans, 1.0)))
    assert counts == [2, 2]  # the fused images, and the first crops for both others
    assert len(wanted(plans, teacher=False)) == 2
    flops, together, alone = costs(network.backbone, plans, 2)
    assert (together, alone) == (4 * 16**3, 6 * 16**3)
    assert flops == 3 * (network.backbone.flops(PATCH) + network.backbone.encoder_flops(PATCH))


def test_gradients_of_the_sum_are_the_sum_of_gradients_also_when_they_are_measured():
    scene = a_scene()

    def gradients(**job: bool) -> list[Tensor]:
        network = a_network(1.0)
        terms = run(network, scene, **job)["terms"]
        torch.stack(list(terms.values())).sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    for plain, measured in zip(gradients(), gradients(measure=True), strict=True):
        torch.testing.assert_close(plain, measured)


def test_a_measured_norm_is_that_of_the_gradient_at_the_features_and_is_balanced():
    network, scene = a_network(0.01, 0.1), a_scene()
    out = run(network, scene, measure=True, balance=True)
    features = network.backbone.features(scene.crop(0).images)[-1].detach().requires_grad_()
    branch = network.objectives()["brightness0"]
    target = scene.crop(0).images.mean((1, 2, 3, 4))
    (0.01 * (branch.head(features.mean((2, 3, 4)))[:, 0] - target).square().mean()).backward()
    assert features.grad is not None
    assert out["watched"]["brightness0/gradient"].item() == pytest.approx(features.grad.norm().item(), rel=1e-4)
    for _ in range(100):
        out = run(network, scene, measure=True, balance=True)
    norms = np.array([out["watched"][f"{name}/gradient"].item() for name in network.branches])
    terms = ("volume_fusion/ce", "brightness0/error", "brightness1/error")
    factors = np.array([out["weights"][term] for term in terms])
    factors[0] *= 2  # cross-entropy counts half
    balanced = norms * factors
    assert balanced.max() / balanced.min() < 1.01


def test_a_loss_that_has_hardly_a_gradient_is_scaled_up_tenfold_at_most():
    network, scene = a_network(1e-6), a_scene()
    for _ in range(100):
        out = run(network, scene, measure=True, balance=True)
    assert out["watched"]["brightness0/balance"].item() == pytest.approx(10, rel=1e-3)
    assert out["watched"]["volume_fusion/balance"].item() == pytest.approx(0.1, rel=1e-3)


class Follower(Brightness):
    """Compares deepest features with those that the teacher has of the same images."""

    wants_teacher = True

    def plan(self, scene: Scene) -> Plan:
        """Both look at the first crop."""
        images = scene.crop(0).images
        return Plan({"own": Pass(images), "other": Pass(images, teacher=True)}, None)

    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: Objective | None, over: Samples = OWN) -> Losses:
        """Squared difference; also of the heads' weights, to see that the teacher's branch is given."""
        assert isinstance(teacher, Follower)
        own, other = seen["own"].features[-1], seen["other"].features[-1]
        assert own.requires_grad
        assert not other.requires_grad
        terms = {
            "features": (own - other).square().mean(),
            "head": (self.head.weight - teacher.head.weight).abs().sum(),
        }
        return Losses(terms, dict.fromkeys(terms, 1.0), {})


def test_a_teacher_sees_the_same_images_with_its_own_weights_and_learns_nothing():
    def follower(seed: int) -> Pretraining:
        backbone = build(MODEL)
        network = Pretraining(backbone, {"follower": Follower(backbone.levels[-1].channels)})
        network.initialise(torch_generator(seed, "weights"))
        return network

    network, scene = follower(0), a_scene()
    plans, weights = network.plans(scene), {"follower": 1.0}
    assert len(wanted(plans, teacher=True)) == len(wanted(plans, teacher=False)) == 1
    same = network(Job(plans, weights, teacher=follower(0)))["terms"]
    assert {name: float(value.detach()) for name, value in same.items()} == {"features": 0.0, "head": 0.0}
    teacher = follower(1)
    other = network(Job(plans, weights, teacher=teacher))["terms"]
    images = scene.crop(0).images
    theirs = teacher.backbone.features(images)[-1]
    error = (network.backbone.features(images)[-1] - theirs).square().mean()
    assert other["features"].item() == pytest.approx(error.item(), rel=1e-6)
    other["features"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    flops, *_ = costs(network.backbone, plans, 2)
    assert flops == 4 * network.backbone.encoder_flops(PATCH)  # three to train, one for the teacher


def test_weights_move_over_the_run_and_0_leaves_an_objective_out():
    config = MixtureConfig(last_weights=WeightsConfig(volume_fusion=0.0), moving=(0.25, 0.75))
    assert [config.weights_at(p)["volume_fusion"] for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 0.5, 0, 0]
    with pytest.raises(ConfigError, match=r"objective.weights must be positive for at least one"):
        MixtureConfig(weights=WeightsConfig(volume_fusion=0.0))
    with pytest.raises(ConfigError, match=r"objective.weights.volume_fusion must be at least 0"):
        WeightsConfig(volume_fusion=-1.0)
    with pytest.raises(ConfigError, match=r"objective.moving"):
        dataclasses.replace(config, moving=(0.8, 0.2))
    with pytest.raises(ConfigError, match=r"objective.measure_every must be positive"):
        dataclasses.replace(config, balance="gradients", measure_every=0)


def test_graph_matching_is_a_branch_beside_volume_fusion():
    backbone = build(MODEL)
    matching = GraphMatchingConfig(group=4, k=2, width=8)
    config = MixtureConfig(weights=WeightsConfig(graph_matching=2.0), volume_fusion=FUSION, graph_matching=matching)
    network = Pretraining(backbone, branches(config, backbone))
    network.initialise(torch_generator(0, "weights"))
    scene = a_scene(samples=4)
    for branch in network.objectives().values():
        branch.check(backbone, PATCH)
    plans = network.plans(scene)
    out = network(Job(plans, config.weights_at(0.0)))
    assert {"volume_fusion/dice", "graph_matching/matching", "graph_matching/variance"} <= out["terms"].keys()
    assert out["weights"]["graph_matching/matching"] == 2.0
    again = network(Job(network.plans(a_scene(samples=4)), config.weights_at(0.0)))
    assert [float(v.detach()) for v in out["terms"].values()] == [float(v.detach()) for v in again["terms"].values()]
    sum(out["terms"].values()).backward()
    assert all(p.grad is not None for p in network.branches.parameters())
    with pytest.raises(ConfigError, match=r"objective.graph_matching.group must be a divisor of a micro-batch's 2"):
        network.plans(a_scene(samples=2))


MATCHINGS = {
    "image": GraphMatchingConfig(group=4, k=2, width=8),
    "sub_volume": GraphMatchingConfig(mode="sub_volume", group=4, crops=2, k=1, spatial_k=1, width=8),
    "patch": GraphMatchingConfig(mode="patch", nodes=16, k=3, width=8, level=1),
    "patch, decoder": GraphMatchingConfig(
        mode="patch", nodes=16, k=3, width=8, level=2, features="decoder", flips=(0.5, 0.5, 0.5)
    ),
}


@pytest.mark.parametrize("name", MATCHINGS)
def test_every_kind_of_graph_is_a_branch_that_its_twin_shares_all_passes_with(name: str):
    backbone, config = build(MODEL), MATCHINGS[name]
    made = {"matching": GraphMatching(config, backbone), "twin": GraphMatching(info_nce_twin(config), backbone)}
    network = Pretraining(backbone, made)
    network.initialise(torch_generator(0, "weights"))
    crops = max(branch.views_per_sample for branch in made.values())
    for branch in made.values():
        branch.check(backbone, PATCH)
    scene = a_scene(samples=4, crops=crops, known=True)
    plans = network.plans(scene)
    _, together, alone = costs(backbone, plans, 4)
    assert 2 * together == alone
    out = network(Job(plans, dict.fromkeys(plans, 1.0)))
    assert {name for name in out["terms"] if name.startswith("twin")} == {"twin/info_nce"}
    assert all(value.isfinite() for part in ("terms", "watched") for value in out[part].values())
    sum(out["terms"].values()).backward()
    assert all(p.grad is not None for p in network.branches.parameters())
    pictures = network(Pictures(plans))["pictures"]
    assert len(pictures) == 1  # the twin matches nothing
    (drawn,) = pictures.values()
    colours = {tuple(c) for c in drawn.reshape(-1, 3).tolist()}
    assert drawn.dtype == np.uint8
    assert colours & {graph_pictures.TRUE, graph_pictures.FALSE}
    again = network(Job(network.plans(a_scene(samples=4, crops=crops, known=True)), dict.fromkeys(plans, 1.0)))
    assert [float(v.detach()) for v in out["terms"].values()] == [float(v.detach()) for v in again["terms"].values()]
    # The twin's loss is that of the other's own projector, had it the twin's terms.
    same = GraphMatching(dataclasses.replace(config, info_nce_weight=1.0), backbone)
    same.load_state_dict(made["matching"].state_dict())
    made["twin"].load_state_dict(same.state_dict(), strict=False)
    pair = Pretraining(backbone, {"same": same, "twin": made["twin"]})
    terms = pair(Job(pair.plans(scene), {"same": 1.0, "twin": 1.0}))["terms"]
    assert terms["same/info_nce"].item() == pytest.approx(terms["twin/info_nce"].item(), abs=1e-6)


def test_nodes_of_sub_volumes_stand_by_sample_with_the_scan_and_the_place_in_mm():
    branch = GraphMatching(MATCHINGS["sub_volume"], build(MODEL))
    scene = a_scene(samples=4, crops=2, known=True)
    targets = branch.plan(scene).targets
    assert targets.scans.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    for crop, pair in enumerate(targets.views):
        for view in pair:
            assert not torch.equal(view.place[0], view.place[1])
            corner = view.place[0] @ torch.tensor([0.0, 0, 0, 1])
            want = torch.tensor([2.0, 1, 1]) * corner + torch.tensor([4.0, 2, 2])
            torch.testing.assert_close(view.mm[0, :, 3], want)
            assert view is scene.near("s" if view is pair[0] else "t", (0.6, 1.0), crop=crop)


def test_a_patch_without_tokens_for_all_nodes_is_refused_and_a_level_that_is_not_there():
    backbone = build(MODEL)
    config = dataclasses.replace(MATCHINGS["patch"], nodes=128, level=2)
    with pytest.raises(
        ConfigError, match=r"objective.graph_matching.nodes must be up to the level's 64 tokens, not 128"
    ):
        GraphMatching(config, backbone).check(backbone, PATCH)
    with pytest.raises(ConfigError, match=r"objective.graph_matching.level must be 0 to 4, not 5"):
        GraphMatching(dataclasses.replace(MATCHINGS["patch, decoder"], level=5), backbone)


def test_near_views_of_any_crop_may_be_mirrored_and_their_places_say_so():
    scene = a_scene()
    plain = scene.near("a", (0.5, 0.5), central=True, size=(8, 8, 8), crop=1)
    turned = scene.near("a", (0.5, 0.5), central=True, size=(8, 8, 8), crop=1, flips=(1.0, 0.0, 1.0))
    torch.testing.assert_close(turned.images, plain.images.flip(2, 4))
    torch.testing.assert_close(plain.images, scene.crop(1).images[..., 4:12, 4:12, 4:12])
    torch.testing.assert_close(turned.place[0], torch.tensor([[-1.0, 0, 0, 11], [0, 1, 0, 4], [0, 0, -1, 11]]))


def test_places_of_features_are_centres_of_their_cells_in_mm():
    view = a_scene(spacing=(2.0, 1.0, 1.0)).near("half", (0.5, 0.5), central=True, size=(8, 8, 8))
    found = positions_mm(view, torch.Size((4, 4, 4)))
    # Voxels 4 to 11 of the crop are seen; cells are two voxels wide.
    assert found[0, 0, :, 0, 0].tolist() == pytest.approx([9.0, 13.0, 17.0, 21.0])
    assert found[0, 2, 0, 0, :].tolist() == pytest.approx([4.5, 6.5, 8.5, 10.5])


def test_a_near_view_of_the_whole_crop_is_the_crop_and_a_central_half_its_middle():
    scene = a_scene()
    assert scene.near("a", (1.0, 1.0)) is scene.near("a", (1.0, 1.0))
    torch.testing.assert_close(scene.near("a", (1.0, 1.0)).images, scene.crop(0).images)
    half = scene.near("b", (0.5, 0.5), central=True, size=(8, 8, 8))
    torch.testing.assert_close(half.images, scene.crop(0).images[..., 4:12, 4:12, 4:12])
    torch.testing.assert_close(half.place[0], torch.tensor([[1.0, 0, 0, 4], [0, 1, 0, 4], [0, 0, 1, 4]]))


def test_near_views_stay_in_the_crop_and_their_places_say_where_they_are():
    scene = a_scene()
    view = scene.near("c", (0.3, 0.9))
    for corner in (torch.zeros(3), torch.full((3,), 15.0)):
        places = view.place[:, :, :3] @ corner + view.place[:, :, 3]
        assert float(places.min()) >= -0.5
        assert float(places.max()) <= 15.5
    assert not torch.equal(view.place[0], view.place[1])


def rates(network: nn.Module, config: OptimConfig, lr: float) -> dict[str, float]:
    """Learning rate of each parameter in a step whose rate is `lr`."""
    optimizer = build_optimizer(network, config)
    set_learning_rate(SimpleNamespace(optimizer=optimizer), lr)
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_layers_of_the_backbone_and_heads_of_the_branches_have_their_own_rates():
    network = a_network(1.0)
    found = rates(network, OptimConfig(layer_decay=0.5, head_lr=3.0), 0.1)
    heads = {name for name, _ in network.named_parameters() if name.startswith("branches.")}
    assert {"branches.brightness0.head.weight", "branches.volume_fusion.head.weight"} <= heads
    assert [found[name] for name in heads] == pytest.approx([0.3] * len(heads))
    # Six levels of the encoder, then five steps of the decoder, of which the last is the top.
    for level in range(6):
        name = f"backbone.conv_blocks_context.{level}.0.conv1.weight"
        assert found[name] == pytest.approx(0.1 * 0.5 ** (10 - level))
    for step in range(5):
        name = f"backbone.conv_blocks_localization.{step}.0.conv1.weight"
        assert found[name] == pytest.approx(0.1 * 0.5 ** (4 - step))
    assert len({value for name, value in found.items() if name not in heads}) == 11


def test_without_factors_all_have_the_same_rate():
    assert set(rates(a_network(1.0), OptimConfig(), 0.1).values()) == {0.1}
