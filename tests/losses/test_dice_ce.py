from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voxscale.errors import DataError
from voxscale.losses import dice_ce
from voxscale.losses.cross_entropy import cross_entropy
from voxscale.losses.dice import soft_dice_loss
from voxscale.losses.dice_ce import dice_and_cross_entropy
from voxscale.seed import torch_generator

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces in each sample, the last one shorter."""
    monkeypatch.setattr(dice_ce, "_CACHED", 160 // torch.get_num_threads())


def case(classes: int, layout: torch.memory_format, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch_generator(classes)
    logits = 3 * torch.randn(2, classes, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)
    mask = torch.rand(target.shape, generator=generator) > 0.3
    return logits.to(kind).contiguous(memory_format=layout).requires_grad_(), target, mask


def gradient(losses: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(0.7 * losses[0] + 1.9 * losses[1], logits)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [3, 40])  # taken by classes and by voxels when channels come last
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_equals_the_plain_losses(layout: torch.memory_format, classes: int, pooled: bool, background: bool) -> None:
    for kind, rtol in ((torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        logits, target, mask = case(classes, layout, kind)
        for counted in (None, mask):
            settings: dict[str, Any] = {"pooled": pooled, "background": background, "eps": 0.5, "mask": counted}
            want = (soft_dice_loss(logits, target, **settings), cross_entropy(logits, target, counted))
            got = dice_and_cross_entropy(logits, target, **settings)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=0, check_dtype=False)  # these compute in float32
            found = gradient(got, logits)
            assert found.stride() == logits.stride()
            torch.testing.assert_close(found, gradient(want, logits), rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pooled", [True, False])
def test_gradient_of_each_loss_is_its_derivative(layout: torch.memory_format, pooled: bool) -> None:
    for classes in (3, 33):
        logits, target, mask = case(classes, layout)
        logits, target, mask = (t.detach()[:, ..., :1, :2, :2] for t in (logits, target, mask))
        logits = logits.clone(memory_format=layout).requires_grad_()

        def losses(x: Tensor, target: Tensor = target, mask: Tensor = mask) -> tuple[Tensor, Tensor]:
            return dice_and_cross_entropy(x, target, pooled=pooled, background=False, mask=mask)

        assert torch.autograd.gradcheck(losses, logits)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_equals_monai(pooled: bool, background: bool) -> None:
    logits, target, _ = case(35, torch.channels_last_3d)
    theirs = DiceCELoss(
        include_background=background, to_onehot_y=True, softmax=True, batch=pooled, smooth_nr=1e-5, smooth_dr=1e-5,
        lambda_dice=0.7, lambda_ce=1.9,
    )  # fmt: skip
    want = theirs(logits, target.unsqueeze(1))
    got = dice_and_cross_entropy(logits, target, pooled=pooled, background=background)
    torch.testing.assert_close(0.7 * got[0] + 1.9 * got[1], want, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(got, logits), torch.autograd.grad(want, logits)[0], rtol=1e-5, atol=1e-10)


def test_any_strides_and_an_unlikely_class() -> None:
    logits, target, _ = case(34, torch.contiguous_format, torch.float32)
    wide = logits.detach().repeat_interleave(2, dim=4)[..., ::2]
    wide[0, int(target[0, 0, 0, 0]), 0, 0, 0] -= 300  # its probability is 0 in float32, its surprise is not infinite
    wide.requires_grad_()
    want = (soft_dice_loss(wide, target, pooled=True, background=True), cross_entropy(wide, target))
    got = dice_and_cross_entropy(wide, target, pooled=True, background=True)
    torch.testing.assert_close(got, want)
    assert got[1] > 300 / target.numel()
    torch.testing.assert_close(gradient(got, wide), gradient(want, wide), rtol=1e-5, atol=1e-8)


def test_empty_mask_gives_no_gradient() -> None:
    logits, target, mask = case(3, torch.channels_last_3d, torch.float32)
    got = dice_and_cross_entropy(logits, target, pooled=True, background=True, mask=mask & False)
    assert [float(loss.detach()) for loss in got] == [0, 0]
    assert not gradient(got, logits).any()


class Largest(TorchDispatchMode):
    """Remembers the numbers of elements of all tensors that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.sizes += [t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)]
        return out


def test_nothing_but_the_gradient_is_as_large_as_the_logits() -> None:
    logits, target, _ = case(40, torch.channels_last_3d, torch.bfloat16)
    with Largest() as seen:
        losses = dice_and_cross_entropy(logits, target, pooled=True, background=True)
        assert 0 < max(seen.sizes) <= 160
        gradient(losses, logits)
    assert [size for size in seen.sizes if size > 160] == [logits.numel()]


def test_bad_input_is_refused() -> None:
    logits, target, mask = case(3, torch.contiguous_format)
    with pytest.raises(DataError, match=r"^target must"):
        dice_and_cross_entropy(logits, target[:, 1:], pooled=True, background=True)
    with pytest.raises(DataError, match=r"^mask must"):
        dice_and_cross_entropy(logits, target, pooled=True, background=True, mask=mask[1:])
    with pytest.raises(DataError, match=r"^logits must"):
        dice_and_cross_entropy(logits[:, :1], target, pooled=True, background=False)
    for layout in LAYOUTS:
        with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
            dice_and_cross_entropy(
                logits[:, :2].contiguous(memory_format=layout), target, pooled=True, background=True
            )  # fmt: skip
