import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from pretrain.objectives.fusion_config import VolumeFusionConfig, check
from pretrain.objectives.fusion_labels import sample_labels
from pretrain.objectives.volume_fusion import IGNORED, draw_and_fuse, fuse, fuse_views, loss, volume_fusion
from pretrain.views import ViewsConfig, make_views
from voxscale.batch import Patch, Views, collate
from voxscale.config import from_dict, to_dict
from voxscale.errors import ConfigError, DataError
from voxscale.kernel import fusion
from voxscale.losses.earth_mover import earth_mover_loss
from voxscale.seed import rng

SMALL = VolumeFusionConfig(block_min=2, block_max=4)
DEMO = VolumeFusionConfig(block_min=(5, 8, 8), block_max=(20, 32, 32))
PREPRINT = VolumeFusionConfig(layout="boxes", pairing="across", block_min=8, block_max=(40, 80, 80))


def shares(config: VolumeFusionConfig, size: tuple[int, int, int], draws: int) -> np.ndarray:
    """Share of each class in each draw."""
    rows = [
        np.bincount(label.numpy().ravel(), minlength=config.classes) / label.numel()
        for first in range(0, draws, 10)
        for label in sample_labels(range(first, first + 10), size, config)
    ]
    return np.array(rows)


# Measured on the published implementations, 300 draws each: mean of class 0, of each other class, standard
# deviation of class 0. 200 draws leave the mean of class 0 a standard error of at most 0.01.
@pytest.mark.parametrize(
    ("config", "size", "background", "foreground", "deviation", "lacking"),
    [
        (DEMO, (64, 128, 128), 0.44, 0.14, 0.06, 0.0),
        (VolumeFusionConfig(), (96, 96, 96), 0.46, 0.14, 0.06, 0.0),
        (VolumeFusionConfig(), (32, 32, 32), 0.76, 0.06, 0.16, 0.94),
        (PREPRINT, (64, 128, 128), 0.47, 0.13, 0.14, 0.02),
        (VolumeFusionConfig(layout="boxes", block_max=60), (96, 96, 96), 0.48, 0.13, 0.14, 0.05),
    ],
)
def test_class_shares_are_the_published_ones(
    config: VolumeFusionConfig,
    size: tuple[int, int, int],
    background: float,
    foreground: float,
    deviation: float,
    lacking: float,
) -> None:
    found = shares(config, size, 200)
    assert found[:, 0].mean() == pytest.approx(background, abs=0.03)
    np.testing.assert_allclose(found[:, 1:].mean(0), foreground, atol=0.02)
    assert found[:, 0].std() == pytest.approx(deviation, abs=0.02)
    assert (found == 0).any(1).mean() == pytest.approx(lacking, abs=0.05)


@pytest.mark.parametrize("config", [VolumeFusionConfig(), VolumeFusionConfig(layout="boxes", block_max=60)])
def test_every_sample_has_foreground_behind_one_channel_axis(config: VolumeFusionConfig) -> None:
    labels = sample_labels(range(20), (96, 96, 96), config)
    assert labels.shape == (20, 1, 96, 96, 96)
    assert labels.dtype == torch.uint8
    assert ((labels > 0).flatten(1).float().mean(1) > 0.1).all()


def test_grid_without_margin_has_exactly_the_ratio_of_whole_constant_cells() -> None:
    labels = sample_labels(range(3), (24, 40, 48), VolumeFusionConfig(block_min=8, block_max=8))
    for label in labels[:, 0].numpy():
        cells = label.reshape(3, 8, 5, 8, 6, 8).transpose(0, 2, 4, 1, 3, 5).reshape(90, 512)
        assert (cells == cells[:, :1]).all()
        assert (cells[:, 0] > 0).sum() == 63  # 0.7 * 90, which is 62.999... in binary
        assert set(cells[:, 0]) == {0, 1, 2, 3, 4}


def test_grid_margin_is_background_on_both_sides() -> None:
    config = VolumeFusionConfig(block_min=8, block_max=8, ratio=1.0)
    filled = sample_labels(range(60), (20, 8, 11), config)[:, 0] > 0
    spans = set()
    for label in filled:
        z, x = label.any(2).any(1).nonzero().flatten(), label.any(1).any(0).nonzero().flatten()
        assert label.any(2).any(0).all()
        assert label.sum() == 16 * 8 * 8
        assert len(z) == z[-1] - z[0] + 1 == 16
        assert len(x) == x[-1] - x[0] + 1 == 8
        spans.add((int(z[0]), int(x[0])))
    assert {z for z, _ in spans} == {0, 1, 2, 3, 4}
    assert {x for _, x in spans} == {0, 1, 2, 3}


def test_grid_sides_span_the_range_per_axis() -> None:
    config = VolumeFusionConfig(block_min=(2, 3, 4), block_max=(3, 5, 4), ratio=1.0, levels=1)
    filled = sample_labels(range(60), (16, 16, 16), config)[:, 0] > 0
    long = {tuple(int(label.any(a).any(b).sum()) for a, b in ((2, 1), (2, 0), (1, 0))) for label in filled}
    assert {z for z, _, _ in long} == {16, 15}
    assert {y for _, y, _ in long} == {15, 16}
    assert {x for _, _, x in long} == {16}


def test_one_box_is_clipped_at_the_border_and_centred_anywhere() -> None:
    config = VolumeFusionConfig(layout="boxes", block_min=4, block_max=4, boxes=(1, 1), levels=1)
    filled = sample_labels(range(400), (6, 6, 6), config)[:, 0] > 0
    spans = []
    for label in filled:
        z = label.any(2).any(1).nonzero().flatten()
        assert label.sum() == label.any(2).any(1).sum() * label.any(2).any(0).sum() * label.any(1).any(0).sum()
        spans.append((int(z[0]), len(z)))
    # A centre of 0..5 gives the span [c - 2, c + 2), cut to 0..6.
    count = Counter(spans)
    assert set(count) == {(0, 2), (0, 3), (0, 4), (1, 4), (2, 4), (3, 3)}
    assert min(count.values()) > 35
    assert max(count.values()) < 105


def test_number_of_boxes_and_their_classes_span_the_range() -> None:
    config = VolumeFusionConfig(layout="boxes", block_min=1, block_max=1, boxes=(3, 5))
    labels = sample_labels(range(100), (64, 64, 64), config)
    assert set((labels > 0).flatten(1).sum(1).tolist()) == {3, 4, 5}
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("config", [SMALL, VolumeFusionConfig(layout="boxes", block_min=2, block_max=6)])
def test_labels_depend_on_each_seed_alone(config: VolumeFusionConfig) -> None:
    together = sample_labels((5, 6, 7), (9, 10, 11), config)
    assert torch.equal(together, torch.cat([sample_labels((seed,), (9, 10, 11), config) for seed in (5, 6, 7)]))
    assert not torch.equal(together[0], together[1])


def test_fused_values_voxel_by_voxel() -> None:
    background = torch.from_numpy(rng(0, "b").random((2, 1, 4, 5, 6))).float()
    foreground = torch.from_numpy(rng(0, "f").random((2, 1, 4, 5, 6))).float()
    label = sample_labels((1, 2), (4, 5, 6), SMALL)
    fused = fuse(background, foreground, label, 4)
    for place in np.ndindex(*label.shape):
        b, f, alpha = float(background[place]), float(foreground[place]), int(label[place]) / 4
        assert float(fused[place]) == pytest.approx(b + alpha * (f - b), abs=1e-6)
    assert torch.equal(fused[label == 0], background[label == 0])
    assert torch.equal(fused[label == 4], foreground[label == 4])
    assert len(label.unique()) == 5


def logits_and_label() -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.from_numpy(rng(0, "logits").normal(size=(2, 5, 8, 8, 8))).float()
    return logits, sample_labels((1, 2), (8, 8, 8), SMALL)


def test_loss_agrees_with_monai() -> None:
    logits, label = logits_and_label()
    oracle = DiceCELoss(
        to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5, lambda_dice=0.5, lambda_ce=0.5
    )
    assert float(loss(logits, label).total) == pytest.approx(float(oracle(logits, label)), abs=1e-5)


def test_loss_of_several_heads_is_weighted_by_halves() -> None:
    logits, label = logits_and_label()
    coarse = logits[..., ::2, ::2, ::2]
    alone, below = loss(logits, label), loss(coarse, label[..., ::2, ::2, ::2])
    both = loss([logits, coarse], label)
    assert float(both.total) == pytest.approx(float(alone.total) * 2 / 3 + float(below.total) / 3, abs=1e-5)
    assert both.watched == alone.watched


def test_ordinal_term_is_the_earth_mover_distance_of_counted_voxels_and_weighs_as_asked() -> None:
    logits, label = logits_and_label()
    ignored = torch.zeros(label.shape, dtype=torch.bool)
    ignored[..., :3] = True
    plain, found = loss(logits, label, ignored), loss(logits, label, ignored, ordinal_weight=0.5)
    wanted = float(earth_mover_loss(logits[..., 3:], label[:, 0, ..., 3:]))
    assert "ordinal" not in plain.terms
    assert float(found.terms["ordinal"]) == pytest.approx(wanted, abs=1e-6)
    assert float(found.total - plain.total) == pytest.approx(0.5 * wanted, abs=1e-5)


def test_ignored_voxels_change_nothing() -> None:
    logits, label = logits_and_label()
    ignored = torch.zeros(label.shape, dtype=torch.bool)
    ignored[..., :3] = True
    other = torch.where(ignored, 7 * logits.roll(1, dims=1), logits)
    first = loss([logits, logits[..., ::2, ::2, ::2]], label, ignored)
    second = loss([other, other[..., ::2, ::2, ::2]], label, ignored)
    cut = loss(logits[..., 3:], label[..., 3:])
    assert float(first.total) == pytest.approx(float(second.total), abs=1e-6)
    assert first.watched == second.watched == cut.watched
    assert float(loss(logits, label, ignored).total) == pytest.approx(float(cut.total), abs=1e-5)


def test_watched_values_by_hand() -> None:
    label = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.uint8).view(1, 1, 1, 1, 6)
    said = torch.tensor([0, 0, 1, 0, 2, 1]).view(1, 1, 1, 6)
    logits = torch.nn.functional.one_hot(said, 5).movedim(-1, 1).float().requires_grad_()
    watched = loss(logits, label).watched
    assert float(watched["pretext_accuracy"]) == pytest.approx(4 / 6)
    # Class 0: 2*2/(2+3), class 1: 2*1/(2+2), class 2: 2*1/(2+1); classes 3 and 4 are nowhere.
    assert float(watched["pretext_dice"]) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert not any(value.requires_grad for value in watched.values())


class Spy:
    """A network of one convolution that keeps what it was given."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.conv = torch.nn.Conv3d(1, 5, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return self.conv(images)


def some_views(samples: int, crops: int, seed: int = 0) -> Views:
    images = torch.from_numpy(rng(seed, "views").random((samples, crops, 1, 8, 8, 8))).float()
    return Views(images=images, inside=torch.ones(images.shape, dtype=torch.bool), seeds=tuple(range(samples)))


def test_within_pairs_two_crops_of_one_sample() -> None:
    views, spy = some_views(3, 2), Spy()
    losses = volume_fusion(spy, views, SMALL)
    label = sample_labels(views.seeds, (8, 8, 8), SMALL)
    assert torch.equal(spy.images[label == 0], views.images[:, 0][label == 0])
    assert torch.equal(spy.images[label == 4], views.images[:, 1][label == 4])
    assert torch.equal(fuse_views(views, SMALL)[3], spy.images)
    losses.total.backward()
    assert torch.isfinite(spy.conv.weight.grad).all()
    assert spy.conv.weight.grad.abs().sum() > 0
    assert losses.terms.keys() == {"dice", "ce"}


def test_across_takes_the_sample_before_as_foreground() -> None:
    config = VolumeFusionConfig(layout="boxes", pairing="across", block_min=2, block_max=6)
    views, spy = some_views(3, 1), Spy()
    volume_fusion(spy, views, config)
    label = sample_labels(views.seeds, (8, 8, 8), config)
    for row in range(3):
        background, foreground = views.images[row, 0], views.images[row - 1, 0]
        assert torch.equal(spy.images[row][label[row] == 0], background[label[row] == 0])
        assert torch.equal(spy.images[row][label[row] == 4], foreground[label[row] == 4])


@pytest.mark.parametrize("pairing", ["within", "across"])
def test_voxels_that_show_what_lies_outside_do_not_count(pairing: str) -> None:
    """Not even in one of the crops, unless that one does not show there."""
    config = VolumeFusionConfig(pairing=pairing, block_min=2, block_max=4)
    views = some_views(2, config.views_per_sample)
    views.inside[..., :4, :, :] = False
    views.inside[0, 0, 0, 3] = True
    spy = Spy()
    losses = volume_fusion(spy, views, config)
    label = sample_labels(views.seeds, (8, 8, 8), config)
    assert {0, 1, 4} <= set(label[:, 0, 3].flatten().tolist())
    marked = label.clone()
    marked[:, :, :3] = IGNORED
    first, second = marked[0, 0, 3], marked[1, 0, 3]
    first[first > 0] = IGNORED  # the background is inside, the foreground is not
    if pairing == "within":
        second[:] = IGNORED
    else:  # the second sample has the first one as its foreground
        second[second < 4] = IGNORED
    expected = loss(spy.conv(spy.images), label, marked == IGNORED)
    assert losses.total.item() == pytest.approx(expected.total.item(), abs=1e-6)


@pytest.mark.parametrize("pairing", ["within", "across"])
def test_voxels_at_which_the_crops_look_the_same_do_not_count(pairing: str) -> None:
    """Air on air has no level; with a least difference of 0, as published, it counts."""
    config = VolumeFusionConfig(pairing=pairing, block_min=2, block_max=4, least_difference=0.05)
    views = some_views(2, config.views_per_sample)
    views.images[..., :4, :, :] = 0.02 * views.images[..., :4, :, :]
    views.images[..., 4:, :, :] = 0.5 + 0.4 * views.images[..., 4:, :, :]
    spy = Spy()
    losses = volume_fusion(spy, views, config)
    label = sample_labels(views.seeds, (8, 8, 8), config)
    first = views.images[:, 0]
    second = views.images[:, 1] if pairing == "within" else first.roll(1, 0)
    alike = (first - second).abs() < 0.05
    assert alike[:, :, :4].all()
    assert 0 < int(alike[:, :, 4:].sum()) < alike[:, :, 4:].numel() / 3
    assert len(label[:, :, :4].unique()) == config.classes
    outputs = spy.conv(spy.images)
    assert losses.total.item() == pytest.approx(loss(outputs, label, alike).total.item(), abs=1e-6)
    plain = volume_fusion(Spy(), views, dataclasses.replace(config, least_difference=0.0))
    assert plain.total.item() == pytest.approx(loss(outputs, label).total.item(), abs=1e-6)
    assert abs(plain.total.item() - losses.total.item()) > 1e-3


def crop(voxels: np.ndarray, seed: int) -> Patch:
    mapping = np.column_stack([np.eye(3), [-3.0, 0, 0]])
    return Patch(voxels=voxels, label=None, matrix=mapping, scale=(1 / 2000, 0.5), seed=seed, index=0, volume="0" * 16)


@pytest.mark.parametrize("scan", ["constant", "air", "one voxel", "body"])
def test_whole_chain_is_finite(scan: str) -> None:
    voxels = np.full((16, 16, 16), 40 if scan == "constant" else -1000, dtype=np.int16)
    if scan == "one voxel":
        voxels[8, 8, 8] = 300
    if scan == "body":
        voxels[4:12, 4:12, 4:12] = rng(0, "body").integers(-100, 200, size=(8, 8, 8))
    for first in range(0, 40, 4):  # with and without inversion
        batch = collate([crop(voxels, seed) for seed in range(first, first + 4)])
        spy = Spy()
        losses = volume_fusion(spy, make_views(batch, (16, 16, 16), 2, ViewsConfig()), SMALL)
        assert torch.isfinite(spy.images).all()
        losses.total.backward()
        assert torch.isfinite(losses.total)
        assert torch.isfinite(spy.conv.weight.grad).all()


def test_whole_chain_does_not_depend_on_how_samples_are_batched() -> None:
    crops = [crop(rng(s, "v").integers(-1000, 1000, size=(9, 9, 9)).astype(np.int16), s) for s in range(8)]
    together, apart = Spy(), []
    volume_fusion(together, make_views(collate(crops), (8, 8, 8), 2, ViewsConfig()), SMALL)
    for first in range(0, 8, 2):
        one = Spy()
        volume_fusion(one, make_views(collate(crops[first : first + 2]), (8, 8, 8), 2, ViewsConfig()), SMALL)
        apart.append(one.images)
    assert torch.equal(together.images, torch.cat(apart))


def test_across_needs_another_sample() -> None:
    config = VolumeFusionConfig(pairing="across", block_min=2, block_max=4)
    with pytest.raises(ConfigError, match=r"^objective.pairing must be 'within' for a batch of one sample"):
        volume_fusion(Spy(), some_views(1, 1), config)


@pytest.mark.parametrize(("pairing", "crops"), [("within", 1), ("within", 3), ("across", 2)])
def test_wrong_number_of_crops_is_refused(pairing: str, crops: int) -> None:
    config = VolumeFusionConfig(pairing=pairing, block_min=2, block_max=4)
    with pytest.raises(DataError, match=f"views must hold {config.views_per_sample} crops per sample, not {crops}"):
        volume_fusion(Spy(), some_views(2, crops), config)


@pytest.mark.parametrize("layout", ["grid", "boxes"])
def test_block_larger_than_the_patch_is_refused(layout: str) -> None:
    config = VolumeFusionConfig(layout=layout, block_max=(8, 32, 32))
    check(config, (8, 32, 32))
    for patch in ((7, 32, 32), (8, 31, 32), (8, 32, 31)):
        with pytest.raises(ConfigError, match=r"^objective.block_max must be at most the patch"):
            check(config, patch)
        with pytest.raises(ConfigError, match=r"^objective.block_max"):
            sample_labels((0,), patch, config)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"levels": 0}, "levels"),
        ({"levels": 255}, "levels"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 1.1}, "ratio"),
        ({"block_min": 0}, "block_min"),
        ({"block_min": (8, 8, 8), "block_max": (16, 7, 16)}, "block_max"),
        ({"boxes": (40, 10)}, "boxes"),
        ({"boxes": (0, 10)}, "boxes"),
        ({"ordinal_weight": -1.0}, "ordinal_weight"),
        ({"least_difference": 1.0}, "least_difference"),
        ({"least_difference": -0.1}, "least_difference"),
    ],
)
def test_bad_config_is_refused_by_name(wrong: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^objective.{name} must be"):
        VolumeFusionConfig(**wrong)


@pytest.mark.parametrize("config", [VolumeFusionConfig(), DEMO, PREPRINT])
def test_config_survives_json(config: VolumeFusionConfig) -> None:
    assert from_dict(VolumeFusionConfig, to_dict(config)) == config


@pytest.mark.parametrize("size", [(7, 9, 33), (24, 40, 48), (1, 16, 17)])
@pytest.mark.parametrize("levels", [1, 2, 4, 3])
def test_one_pass_gives_the_bits_of_label_and_blend(size: tuple[int, int, int], levels: int) -> None:
    if fusion.load() is None:
        pytest.skip("needs g++")
    config = VolumeFusionConfig(levels=levels, block_min=1, block_max=(min(7, size[0]), 7, 9))
    crops = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, 1, *size)).astype(np.float32))
    label, fused = draw_and_fuse(crops[:, 0], crops[:, 1], (5, 6, 7), config)
    wanted = sample_labels((5, 6, 7), size, config)
    assert torch.equal(label, wanted)
    plain = fuse(crops[:, 0], crops[:, 1], wanted, levels)
    assert torch.equal(fused.view(torch.int32), plain.view(torch.int32))
    wide = fusion.fuse_grids(crops[:, 0].double(), crops[:, 1].double(), [], levels)
    thirds = fusion.fuse_grids(crops[:, 0], crops[:, 1], [], 3)
    assert wide is None
    assert thirds is None
