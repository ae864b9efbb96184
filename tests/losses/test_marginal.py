"""A label says nothing of classes that its set does not annotate: by hand, and by the gradient."""

import pytest
import torch
from torch.nn import functional as F

from voxscale.errors import DataError
from voxscale.losses.cross_entropy import cross_entropy
from voxscale.losses.marginal import marginal_logits, marginal_target
from voxscale.seed import torch_generator


def voxel(*logits: float) -> torch.Tensor:
    return torch.tensor(logits, dtype=torch.float32).view(1, -1, 1, 1, 1).requires_grad_()


def label(value: int) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.uint8)


def test_background_of_a_set_that_annotates_one_of_three_classes_by_hand() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1 of which the set annotates the class of 0.2."""
    logits = voxel(*torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist())
    merged = marginal_logits(logits, [2])
    torch.testing.assert_close(merged.softmax(1).flatten(), torch.tensor([0.8, 0.2]))
    loss = cross_entropy(merged, marginal_target(label(0), [2]))
    assert loss.item() == pytest.approx(-torch.tensor(0.8).log().item())
    loss.backward()
    # p - p / 0.8 of all that is merged: the gradient of the merged background, 0.8 - 1, in shares of 4, 3 and 1.
    torch.testing.assert_close(logits.grad.flatten(), torch.tensor([-0.1, -0.075, 0.2, -0.025]))


def test_background_of_one_set_does_not_punish_a_class_of_another_and_full_labels_do() -> None:
    for annotated, pushed_down in (([1], False), ([1, 2], True)):
        logits = voxel(0.3, -0.2, 1.5)
        cross_entropy(marginal_logits(logits, annotated), marginal_target(label(0), annotated)).backward()
        assert (logits.grad.flatten()[2].item() > 0) == pushed_down
        assert logits.grad.flatten()[1].item() > 0  # the class that the set does annotate is not there
        assert logits.grad.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_with_all_classes_annotated_nothing_changes_and_an_annotated_voxel_is_plain_cross_entropy() -> None:
    logits = torch.randn(2, 4, 2, 3, 2, generator=torch_generator(0))
    assert marginal_logits(logits, [1, 2, 3]) is logits
    target = torch.full((2, 2, 3, 2), 3, dtype=torch.uint8)
    found = cross_entropy(marginal_logits(logits, [3, 1]), marginal_target(target, [3, 1]))
    assert found.item() == pytest.approx(F.cross_entropy(logits, target.long()).item(), rel=1e-6)


def test_targets_are_numbered_as_the_merged_logits_are() -> None:
    target = torch.tensor([0, 1, 2, 3, 7], dtype=torch.uint8).view(1, 1, 1, 5)
    assert marginal_target(target, [3, 1]).flatten().tolist() == [0, 2, 0, 1, 0]


@pytest.mark.parametrize("annotated", [[0], [4], [1, 1]])
def test_impossible_classes_are_refused(annotated: list[int]) -> None:
    with pytest.raises(DataError, match="annotated must be different classes from 1 to 3"):
        marginal_logits(torch.zeros(1, 4, 1, 1, 1), annotated)
