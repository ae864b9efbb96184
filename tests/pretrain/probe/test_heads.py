"""Entropies of heads: subject by subject, with intervals, and beside heads that are shown shuffled features."""

import numpy as np
import pytest
import torch
from scenes import noise_scene
from scipy import special, stats
from tests_stores import make_store
from torch import nn

from pretrain.mixture import MixtureConfig, WeightsConfig, branches
from pretrain.network import Heads, Pretraining, Said, look, shuffle_features, wanted
from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.interface import pointwise
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.probe.heads import head_figures, head_sums, read_shown
from pretrain.scene import Labelled, Scene
from voxscale.batch import collate
from voxscale.contract import InputContract
from voxscale.models.build import build
from voxscale.models.stunet import STUNetConfig
from voxscale.seed import torch_generator
from voxscale.store import open_store
from voxscale.stream import CaseStreamConfig, StoreStream, StoreStreamConfig
from voxscale.stream.labelled import LabelledStream, read_sets

PATCH = (16, 16, 16)
CONTRACT = InputContract(spacing=(2.0, 1.5, 1.5))
MODEL = STUNetConfig(width=2, depth=1, strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
PEOPLE = ("a", "b", "a", "c")


def some_said(seed: int, shuffled: torch.Tensor | None = None) -> Said:
    """What a head with five outputs says of four samples, 7 rows of the first and 3, 4 and 6 of the others."""
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.normal(size=(20, 5)) * 2)
    other = torch.from_numpy(draw.normal(size=(20, 5))) if shuffled is None else shuffled
    return Said(scores, other, torch.tensor([0] * 7 + [1] * 3 + [2] * 4 + [3] * 6), labelled=False)


def by_hand(said: list[Said], which: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Mean entropy and mean distribution of each subject."""
    rows: dict[str, list[np.ndarray]] = {}
    for one in said:
        p = special.softmax(getattr(one, which).numpy(), axis=1)
        for sample, row in zip(one.samples.tolist(), p, strict=True):
            rows.setdefault(PEOPLE[sample], []).append(row)
    entropy = {who: stats.entropy(np.array(own), axis=1).mean() / np.log(5) for who, own in rows.items()}
    return entropy, {who: np.mean(own, axis=0) for who, own in rows.items()}


def test_every_subject_counts_alike_and_its_samples_count_together():
    said = [some_said(0), some_said(1)]
    found = head_figures([head_sums(one, PEOPLE) for one in said], seed=0)
    entropy, mean = by_hand(said, "scores")
    shuffled_entropy, shuffled_mean = by_hand(said, "shuffled")
    assert found["entropy"].value == pytest.approx(np.mean([*entropy.values()]))
    assert found["entropy"].members == pytest.approx([entropy[who] for who in "abc"])
    assert found["entropy"].controls["shuffled_features"] == pytest.approx(np.mean([*shuffled_entropy.values()]))

    def usage(means: list[np.ndarray]) -> float:
        return float(stats.entropy(np.mean(means, axis=0)) / np.log(5))

    assert found["usage"].value == pytest.approx(usage([*mean.values()]))
    assert found["usage"].controls["shuffled_features"] == pytest.approx(usage([*shuffled_mean.values()]))
    assert found["entropy"].value != pytest.approx(np.mean([*entropy.values(), entropy["a"]]))
    left = np.array([usage([m for who, m in mean.items() if who != out]) for out in "abc"])
    reach = stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert found["usage"].low == pytest.approx(max(found["usage"].value - reach, 0))
    assert found["usage"].high == pytest.approx(min(found["usage"].value + reach, 1))
    assert min(entropy.values()) <= found["entropy"].low < found["entropy"].value < found["entropy"].high
    assert found["entropy"].high <= max(entropy.values())


def test_a_single_subject_has_no_interval_and_what_never_counts_has_no_figure():
    said = some_said(2)
    found = head_figures([head_sums(said, ("a",) * 4)], seed=0)
    assert all(one.low is None and one.high is None for one in found.values())
    empty = Said(said.scores[:0], said.shuffled[:0], said.samples[:0], labelled=False)
    assert head_figures([head_sums(empty, PEOPLE)], seed=0) == {}
    some = Said(said.scores[:7], said.shuffled[:7], said.samples[:7], labelled=False)  # of the first sample alone
    assert head_figures([head_sums(some, PEOPLE)], seed=0)["entropy"].members == pytest.approx(
        head_figures([head_sums(some, ("a", "a", "a", "a"))], seed=0)["entropy"].members
    )


def test_shuffled_features_keep_their_values_and_nothing_else():
    rows = torch.arange(1000.0).repeat(3, 1).T.contiguous()
    mixed = shuffle_features(rows, torch_generator(0))
    assert all(torch.equal(mixed[:, c].sort().values, rows[:, c]) for c in range(3))
    assert not torch.equal(mixed[:, 0], mixed[:, 1])
    assert np.abs(np.corrcoef(mixed.T.numpy())[~np.eye(3, dtype=bool)]).max() < 0.15
    assert torch.equal(mixed, shuffle_features(rows, torch_generator(0)))


def test_the_control_tells_a_head_that_reads_features_together_from_one_that_always_says_the_same():
    """Two features that agree in sign make this head sure; shuffled they disagree in half of the rows."""
    sign = torch.randint(0, 2, (400, 1), generator=torch_generator(1)).float() * 2 - 1
    features, samples = sign.repeat(1, 2), torch.arange(4).repeat_interleave(100)
    mixed = shuffle_features(features, torch_generator(2))
    weight = torch.tensor([[8.0, 8.0], [-8.0, -8.0]])

    def figures(head):
        return head_figures([head_sums(Said(head(features), head(mixed), samples, labelled=False), PEOPLE)], seed=0)

    reads = figures(lambda x: x @ weight.T)
    assert reads["entropy"].value < 1e-4
    assert reads["entropy"].controls["shuffled_features"] == pytest.approx(0.5, abs=0.1)
    same = figures(lambda x: torch.tensor([[30.0, 0.0]]).expand(len(x), 2))
    assert same["entropy"].value == pytest.approx(same["entropy"].controls["shuffled_features"])
    assert same["usage"].value == pytest.approx(0, abs=1e-6)


def test_a_convolution_of_one_voxel_is_that_of_the_whole_map():
    layer = nn.Conv3d(3, 4, 1)
    maps = torch.randn(2, 3, 4, 5, 6, generator=torch_generator(0))
    rows = pointwise(layer, maps.movedim(1, -1).flatten(0, -2))
    torch.testing.assert_close(rows, layer(maps).movedim(1, -1).flatten(0, -2))


def test_every_head_says_of_its_rows_what_it_says_in_training(tmp_path):
    make_store(tmp_path / "a", 2, labelled=True)
    config = MixtureConfig(
        weights=WeightsConfig(volume_fusion=1.0, part_whole=1.0, supervised=1.0),
        volume_fusion=VolumeFusionConfig(block_min=2, block_max=6),
        part_whole=PartWholeConfig(hidden=16, bottleneck=8, prototypes=32, least_voxels=0, local_views=2),
        supervised=SupervisedConfig(sets=(tmp_path / "a",), heads=2),
    )
    backbone = build(MODEL)
    network = Pretraining(backbone, branches(config, backbone))
    network.initialise(torch_generator(0, "weights"))
    stream = LabelledStream(config.supervised.read(), PATCH, CONTRACT, config.supervised.stream, 0)
    labelled = Labelled(collate([stream.sample(index)[0][0] for index in range(3)]), (0, 0, 0))
    plain = noise_scene(samples=3, crops=2)
    plans = network.plans(Scene(plain.batch, PATCH, 2, plain.config, labelled=labelled))
    plans["volume_fusion"].targets[4][1, :, :8] = True  # a sample half of which does not count
    with torch.no_grad():
        found = network(Heads(plans, torch_generator(0)))["heads"]
        seen = look(backbone, wanted(plans, teacher=False), channels_last=False)
    assert found.keys() == {"volume_fusion/levels", "part_whole/prototypes", "supervised/classes"}
    assert [one.labelled for one in found.values()] == [False, False, True]
    fused = next(one for one in seen.values() if one.decoded and len(one.features[0]) == 3)
    own = network.objectives()
    levels = own["volume_fusion"].head(fused.decoded[0])[..., ::2, ::2, ::2].movedim(1, -1)
    said = found["volume_fusion/levels"]
    assert said.samples.bincount().tolist() == [512, 256, 512]
    torch.testing.assert_close(said.scores[said.samples == 1], levels[1, 4:].flatten(0, -2))
    torch.testing.assert_close(said.scores[said.samples == 2], levels[2].flatten(0, -2))
    classes = found["supervised/classes"]
    assert classes.samples.bincount().tolist() == [512] * 3
    assert found["part_whole/prototypes"].samples.tolist()[:6] == [0, 1, 2, 0, 1, 2]
    assert found["part_whole/prototypes"].scores.abs().max() <= 1 / config.part_whole.student_temperature + 1e-4
    for one in found.values():
        assert one.scores.shape == one.shuffled.shape
        assert not torch.allclose(one.scores, one.shuffled)


def test_people_are_those_whose_scans_are_shown(tmp_path):
    """Also of a scan that had to be replaced."""
    make_store(tmp_path / "a", 4, labelled=False)
    stream = StoreStream(tmp_path / "a", PATCH, CONTRACT, StoreStreamConfig(views=2), 0)
    batch, people = read_shown(stream, range(6))
    entries = open_store(tmp_path / "a").entries
    assert len(batch.seeds) == 12
    assert list(people) == [entries[stream.sample(index)[0][0].volume].subject for index in range(6)]
    assert len(set(people)) == 4

    class Damaged:
        """The first choice of every sample cannot be read."""

        def sample(self, index, spare=0):
            found, _ = stream.sample(index, spare=1)
            return found, [("lost", "corrupt")]

        def subject(self, index, choice=0):
            return stream.subject(index, choice)

    _, people = read_shown(Damaged(), range(6))
    assert list(people) == [entries[stream.sample(index, spare=1)[0][0].volume].subject for index in range(6)]


def test_people_of_labelled_sets_are_told_apart_by_set(tmp_path):
    for name in "ab":
        make_store(tmp_path / name, 3, labelled=True)
    sets = read_sets((tmp_path / "a", tmp_path / "b"), (), "sets")
    stream = LabelledStream(sets, PATCH, CONTRACT, CaseStreamConfig(), 0)
    entries = open_store(tmp_path / "a").entries
    found = [stream.subject(index) for index in range(12)]
    want = [f"{stream.set_of(i)}/{entries[stream.sample(i)[0][0].volume].subject}" for i in range(12)]
    assert found == want
    assert len(set(found)) == 6
