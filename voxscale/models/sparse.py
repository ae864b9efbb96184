"""Convolutional encoders that see the visible part of an image alone: sparse convolutions, computed by masking.

Tian et al. 2023 (SparK). Hidden places are 0 after every layer, as places outside of an image are by
padding, so what is visible does not depend on what is hidden, nor on how much. Norms take their statistics from
visible places alone. The work is that of all places; what is saved is nothing.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

Layer = Callable[[Tensor], Tensor]
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)
LAYERS = (nn.Conv2d, nn.Conv3d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool2d, nn.MaxPool3d)


def spread(visible: Bool[Tensor, "b ..."], size: torch.Size | tuple[int, ...]) -> Bool[Tensor, "b ..."]:
    """Which places of a finer grid are visible.

    Args:
        visible: Which blocks are.
        size: Places along each axis, multiples of the blocks.
    """
    for axis, n in enumerate(size, 1):
        assert n % visible.shape[axis] == 0, f"{n} places must be a multiple of {visible.shape[axis]} blocks"
        visible = visible.repeat_interleave(n // visible.shape[axis], dim=axis)
    return visible


def visible_places(places: Bool[Tensor, "b ..."], visible: Bool[Tensor, "b ..."]) -> Int64[Tensor, "b n"]:
    """Numbers of each sample's visible places, in rising order.

    Args:
        places: Which are.
        visible: The blocks that they are spread from, equally many in each sample.
    """
    flat = places.flatten(1)
    count = int(visible[0].sum()) * flat.shape[1] // visible[0].numel()
    # A stable sort instead of nonzero, for which the host would wait anew at each grid.
    return flat.byte().argsort(dim=1, descending=True, stable=True)[:, :count]


@contextmanager
def hide(model: nn.Module, visible: Bool[Tensor, "b ..."]) -> Generator[None]:
    """Have convolutions, pools and norms see visible places alone while this lasts.

    Args:
        model: Of layers that work place by place, apart from those.
        visible: Which blocks are, equally many in each sample; blocks are whole places of the deepest features.
    """
    places = _Places(visible)
    changed: list[tuple[nn.Module, object]] = []
    for module in model.modules():
        # Exactly these norms: those that other packages derive from them do more.
        norm = type(module) in NORMS
        if norm or isinstance(module, LAYERS):
            changed.append((module, vars(module).get("forward")))
            # The attribute shadows the method of this instance only; names of weights and hooks stay as they are.
            plain = cast(Layer, module.forward)
            module.forward = _alone(plain, places) if norm else _kept(plain, places)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for module, before in changed:
            if before is None:
                del module.forward
            else:
                module.forward = before  # pyright: ignore[reportAttributeAccessIssue]


class _Places:
    """Visible places of each grid that comes along."""

    def __init__(self, visible: Bool[Tensor, "b ..."]) -> None:
        self._visible = visible
        self._masks: dict[torch.Size, Tensor] = {}
        self._numbers: dict[torch.Size, Tensor] = {}

    def mask(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b 1 *size"]:
        """1 where a place is visible."""
        size = x.shape[2:]
        if size not in self._masks:
            self._masks[size] = spread(self._visible, size).unsqueeze(1)
        return self._masks[size].to(x.dtype)

    def numbers(self, x: Float[Tensor, "b c *size"]) -> Int64[Tensor, "b n"]:
        """Numbers of each sample's visible places, in rising order."""
        size = x.shape[2:]
        if size not in self._numbers:
            self._numbers[size] = visible_places(spread(self._visible, size), self._visible)
        return self._numbers[size]


def _kept(plain: Layer, places: _Places) -> Layer:
    """A layer whose results at hidden places are 0."""

    def forward(x: Tensor) -> Tensor:
        y = plain(x)
        return y * places.mask(y)

    return forward


def _alone(plain: Layer, places: _Places) -> Layer:
    """A norm that is shown the visible places of each sample, in a row."""

    def forward(x: Tensor) -> Tensor:
        flat, numbers = x.flatten(2), places.numbers(x).unsqueeze(1).expand(-1, x.shape[1], -1)
        row = (*numbers.shape, *(1,) * (x.ndim - 3))
        y = plain(flat.gather(2, numbers).view(row)).flatten(2)
        return torch.zeros_like(flat, dtype=y.dtype).scatter(2, numbers, y).view_as(x)

    return forward
