"""Features, Dice, controls and intervals against scikit-learn, scipy and cases made by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pretrain.probe.config import ProbeConfig
from pretrain.probe.data import Labelled, Voxels
from pretrain.probe.features import hypercolumns, standardise
from pretrain.probe.scores import Figure, dice_figures, lines, spread_figures
from voxscale.metrics.effective_rank import effective_rank

CONFIG = ProbeConfig(k=5, shrinkage=0.2)


def voxels(label, case):
    nothing = torch.zeros(len(label), dtype=torch.long)
    return Voxels(crop=case, place=nothing[:, None].expand(-1, 3), label=label, case=case)


def made(signal, cases=6, each=80, width=5, seed=0):
    """Features whose first component tells the class, as far as `signal` says."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(2):
        case = torch.arange(cases).repeat_interleave(each)
        label = torch.randint(0, 3, (cases * each,), generator=draw)
        features = torch.randn(cases * each, width, generator=draw)
        features[:, 0] += signal * label
        out += [features, voxels(label, case)]
    x, examples, q, queries = out
    nothing = torch.zeros(cases, 1, 1, 1, 1)
    data = Labelled(nothing, nothing[:, 0], examples, queries, (0, 0, 1, 2, 3, 4), (0, 0, 1, 2, 0, 1), (0, 1, 2))
    return x, q, data


def test_dice_is_that_of_scikit_learn_fold_by_fold():
    x, q, data = made(1.5)
    found = dice_figures(x, q, [2, 3], data, CONFIG, seed=0)
    weight = np.repeat([1 / np.sqrt(2), 1 / np.sqrt(3)], [2, 3])
    scores = {"knn_dice": {}, "linear_dice": {}}
    folds = np.array(data.folds)
    for fold in range(3):
        learn = folds[data.examples.case.numpy()] != fold
        scale = StandardScaler().fit(x[learn].numpy())
        ready, y = scale.transform(x[learn].numpy()) * weight, data.examples.label[learn].numpy()
        models = {
            "knn_dice": KNeighborsClassifier(5).fit(ready, y).predict,
            "linear_dice": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(ready, y).predict,
        }
        for case in np.flatnonzero(folds == fold):
            own = (data.queries.case == int(case)).numpy()
            truth = data.queries.label.numpy()[own]
            for name, predict in models.items():
                guess = predict(scale.transform(q[own].numpy()) * weight)
                scores[name][case] = f1_score(truth, guess, labels=[1, 2], average="macro")  # Dice is F1
    for name, by_case in scores.items():
        subjects = [(by_case[0] + by_case[1]) / 2, by_case[2], by_case[3], by_case[4], by_case[5]]
        assert found[name].members == pytest.approx(subjects, abs=0.02)  # scikit-learn's deviation is over n
        assert found[name].value == pytest.approx(np.mean(subjects), abs=0.01)
        assert found[name].low <= found[name].value <= found[name].high


def test_what_is_found_goes_away_with_shuffled_labels_and_with_shuffled_features():
    for signal in (4.0, 0.0):
        x, q, data = made(signal)
        for one in dice_figures(x, q, [5], data, CONFIG, seed=0).values():
            assert one.controls["shuffled_labels"] < 0.45
            assert one.controls["shuffled_features"] < 0.45
            assert (one.value > 0.9) == (signal > 0)
            assert one.value > 0.9 or abs(one.value - one.controls["shuffled_features"]) < 0.08


def test_a_class_that_a_scan_does_not_show_is_left_out_of_its_mean():
    x, q, data = made(6.0)
    gone = (data.queries.case == 2) & (data.queries.label == 2)
    queries = Voxels(*(getattr(data.queries, f.name)[~gone] for f in dataclasses.fields(Voxels)))
    found = dice_figures(x, q[~gone], [5], dataclasses.replace(data, queries=queries), CONFIG, seed=0)
    assert found["knn_dice"].members[1] > 0.95


def test_hypercolumns_are_what_scipy_reads_between_the_cells():
    draw = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(2, 3, 8, 8, 4, generator=draw), torch.randn(2, 5, 4, 2, 2, generator=draw)
    crop = torch.tensor([0, 0, 1, 1])
    place = torch.tensor([[0, 0, 0], [3, 5, 2], [7, 7, 3], [4, 1, 1]])
    found = hypercolumns([fine, coarse], crop, place, (8, 8, 4))
    assert found[:, :3].numpy() == pytest.approx(fine[crop, :, *place.T].numpy(), abs=1e-5)
    for row, (c, p) in enumerate(zip(crop.tolist(), place.numpy(), strict=True)):
        at = (p + 0.5) * (np.array([4, 2, 2]) / [8, 8, 4]) - 0.5
        for channel in range(5):
            true = ndimage.map_coordinates(coarse[c, channel].numpy(), at[:, None], order=1, mode="nearest")
            assert found[row, 3 + channel].item() == pytest.approx(true[0], abs=1e-5)


def test_levels_weigh_alike_and_dead_features_nothing():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 5, 100, 0, 2, 3]) + 7
    learn, others = standardise(x, x[:10], [2, 4])
    squares = learn.var(dim=0)
    assert squares.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 4, 0, 1 / 4, 1 / 4], abs=1e-4)
    assert learn.mean(dim=0).abs().max() < 1e-4
    assert others.numpy() == pytest.approx(learn[:10].numpy(), abs=1e-5)


def test_spreads_have_intervals_over_crops_and_a_control_without_ties_between_features():
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(64, 1, generator=draw) @ torch.randn(1, 12, generator=draw)
    x = one + 0.05 * torch.randn(64, 12, generator=draw)
    found = spread_figures(x, torch.arange(64), seed=0)["effective_rank"]
    assert found.value == pytest.approx(effective_rank(x))
    assert found.low < found.value < found.high
    assert found.controls["shuffled_features"] > 2 * found.value
    assert found.controls["shuffled_features"] > 7


def test_a_row_of_metrics_compares_subject_by_subject():
    before, now = (0.2, 0.4, 0.3, 0.5), (0.3, 0.5, 0.4, 0.6)
    figures = {"a/b": Figure(0.45, 0.3, 0.6, {"shuffled_labels": 0.1}, now), "c": Figure(2.0)}
    untrained = {"a/b": Figure(0.35, None, None, {}, before), "c": Figure(3.0)}
    row = lines(figures, untrained, 0)
    assert row == pytest.approx(
        {
            "probe/a/b": 0.45, "probe/a/b.low": 0.3, "probe/a/b.high": 0.6, "probe/a/b.shuffled_labels": 0.1,
            "probe/a/b.untrained": 0.35, "probe/a/b.gain": 0.1, "probe/a/b.gain_low": 0.1, "probe/a/b.gain_high": 0.1,
            "probe/c": 2.0, "probe/c.untrained": 3.0, "probe/c.gain": -1.0,
        }
    )  # fmt: skip
    alone = {"probe/a/b", "probe/a/b.low", "probe/a/b.high", "probe/a/b.shuffled_labels", "probe/c"}
    assert lines(figures, {}, 0).keys() == alone
