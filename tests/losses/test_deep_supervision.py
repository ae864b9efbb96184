import pytest
import torch
from torch import Tensor

from voxscale.errors import DataError
from voxscale.losses.cross_entropy import cross_entropy
from voxscale.losses.deep_supervision import deep_supervision


def outputs_of(sizes: list[tuple[int, int, int]], classes: int = 2) -> list[Tensor]:
    return [torch.zeros(1, classes, *size, requires_grad=True) for size in sizes]


def test_weights_halve_and_sum_to_one() -> None:
    outputs = outputs_of([(8, 8, 8), (4, 4, 4), (2, 2, 2)])
    target = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    values = dict(zip((8, 4, 2), (7.0, 70.0, 700.0), strict=True))
    got = deep_supervision(lambda output, _: output.sum() * 0 + values[output.shape[2]], outputs, target)
    assert got.item() == pytest.approx((7 * 4 + 70 * 2 + 700) / 7)
    got.backward()
    assert all(output.grad is not None for output in outputs)


def test_one_output_is_the_plain_loss() -> None:
    logits = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(64, dtype=torch.uint8).view(1, 4, 4, 4) % 3
    torch.testing.assert_close(deep_supervision(cross_entropy, [logits], target), cross_entropy(logits, target))


def test_coarse_targets_are_the_voxels_that_strided_convolutions_are_centred_on() -> None:
    target = torch.arange(2 * 4 * 6 * 8, dtype=torch.int64).remainder(251).to(torch.uint8).view(2, 4, 6, 8)
    seen: list[Tensor] = []

    def spy(output: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return output.sum()

    deep_supervision(spy, outputs_of([(4, 6, 8), (4, 3, 4), (2, 1, 2)]), target)
    assert all(labels.dtype == torch.uint8 for labels in seen)
    assert torch.equal(seen[0], target)
    assert torch.equal(seen[1], target[:, :, ::2, ::2])
    assert torch.equal(seen[2], target[:, ::2, ::6, ::4])


def test_no_output_is_refused() -> None:
    with pytest.raises(DataError, match=r"^outputs must"):
        deep_supervision(cross_entropy, [], torch.zeros(1, 2, 2, 2, dtype=torch.uint8))
