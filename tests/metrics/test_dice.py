import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_dice

from voxscale.errors import DataError
from voxscale.metrics.dice import dice_per_label

GRID = (3, 4, 5)


def test_hand_computed() -> None:
    truth = np.array([[[0, 1, 1, 2, 2, 3]]], dtype=np.uint8)
    prediction = np.array([[[1, 1, 1, 2, 0, 4]]], dtype=np.int16)
    scores = dice_per_label(prediction, truth, [1, 2, 3, 4, 5])
    assert scores == {1: pytest.approx(4 / 5), 2: pytest.approx(2 / 3), 3: 0.0, 4: 0.0, 5: None}
    assert all(type(score) is float for label, score in scores.items() if label != 5)


@given(*[hnp.arrays(np.uint8, GRID, elements=st.integers(0, 3))] * 2)
def test_equals_monai_and_is_symmetric(prediction: np.ndarray, truth: np.ndarray) -> None:
    scores = dice_per_label(prediction, truth, range(4))
    onehot = [torch.from_numpy(np.stack([a == k for k in range(4)])[None]) for a in (prediction, truth)]
    for label, want in enumerate(compute_dice(*onehot, ignore_empty=False)[0].tolist()):
        absent = label not in truth and label not in prediction  # monai calls that 1
        assert scores[label] is None if absent else scores[label] == pytest.approx(want)
    assert scores == dice_per_label(truth, prediction, range(4))


def test_perfect_prediction_scores_one() -> None:
    truth = np.arange(60).reshape(GRID) % 4
    assert dice_per_label(truth, truth, [0, 1, 2, 3]) == dict.fromkeys(range(4), 1.0)


def test_bad_input_is_refused() -> None:
    truth = np.zeros(GRID, dtype=np.uint8)
    with pytest.raises(DataError, match=r"^prediction must have the shape"):
        dice_per_label(truth[1:], truth, [1])
    with pytest.raises(DataError, match=r"^prediction must hold integers"):
        dice_per_label(truth.astype(np.float32), truth, [1])
    with pytest.raises(DataError, match=r"^truth must hold integers"):
        dice_per_label(truth, truth.astype(bool), [1])
