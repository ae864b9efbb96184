"""Which tokens of two views show the same place, known from where the views were cut, and which of them are nodes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voxscale.matching.dustbin import UNMATCHED

TIE = 0.05
"""Tokens by which a place must lie nearer to one token than to the next to count as its own."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of each token (cell of a feature map) of a view.

    Tokens that are neither matched nor alone show a part of a token of the
    other view: no answer for them would be true or false.

    Attributes:
        match: (b, n) the token of the other view that shows the same place, or `UNMATCHED`.
        alone: (b, n) whether the token lies outside the other view, all of it.
    """

    match: Int64[Tensor, "b n"]
    alone: Bool[Tensor, "b n"]


def cells(view: Float[Tensor, "b 3 4"], size: Sequence[int], grid: Sequence[int]) -> Float[Tensor, "b 4 4"]:
    """Map cells of a feature map to where the view's voxels are mapped to, in float64.

    Args:
        view: Maps (z, y, x, 1) of the view's voxels to any common frame.
        size: Voxels of the view along z, y, x.
        grid: Cells of the map along z, y, x.
    """
    ratio = torch.tensor(size, dtype=torch.float64) / torch.tensor(grid, dtype=torch.float64)
    inner = torch.diag(torch.cat([ratio, torch.ones(1, dtype=torch.float64)]))
    inner[:3, 3] = 0.5 * ratio - 0.5  # the outer faces of cells are those of voxels
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64, device=view.device).expand(len(view), 1, 4)
    return torch.cat([view.double(), last], dim=1) @ inner.to(view.device)


def places(mapping: Float[Tensor, "b 4 4"], grid: Sequence[int]) -> Float[Tensor, "b n 3"]:
    """Where the centres of all cells are mapped to, x fastest."""
    axes = [torch.arange(n, dtype=mapping.dtype, device=mapping.device) for n in grid]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
    return index @ mapping[:, :3, :3].mT + mapping[:, None, :3, 3]


@torch.no_grad()
def true_match(
    source: Float[Tensor, "b 4 4"], target: Float[Tensor, "b 4 4"], grids: tuple[Sequence[int], Sequence[int]]
) -> tuple[Truth, Truth]:
    """Tokens that are each other's nearest, for both views.

    A pair counts where each centre lies in the other token, at least `TIE` of
    a token inside its faces: so it lies nearer than half a token to its partner, and
    a place halfway between two tokens belongs to neither.

    Args:
        source: Maps cells of the first view to a common frame, see `cells`; in 2D or 3D, mirrored or not.
        target: Maps cells of the second view to it.
        grids: Cells along z, y, x of both.
    """
    there = _seen(torch.linalg.solve(target, source), grids[0], grids[1])
    back = _seen(torch.linalg.solve(source, target), grids[1], grids[0])
    return _mutual(there, back), _mutual(back, there)


def _seen(mapping: Tensor, own: Sequence[int], other: Sequence[int]) -> Truth:
    """The cell of the other grid that each centre clearly lies in, and whether the whole cell lies outside."""
    at = places(mapping, own)
    near = at.round()
    most = torch.tensor(other, dtype=at.dtype, device=at.device)
    clear = ((at - near).abs() <= 0.5 - TIE) & (near >= 0) & (near < most)
    step = torch.tensor([other[1] * other[2], other[2], 1], dtype=at.dtype, device=at.device)
    match = (near * step).sum(dim=2).long().masked_fill(~clear.all(dim=2), UNMATCHED)
    half = mapping[:, None, :3, :3].abs().sum(dim=3) / 2
    outside = (at + half <= -0.5 + 1e-6) | (at - half >= most - 0.5 - 1e-6)
    return Truth(match, outside.any(dim=2))


def _mutual(one: Truth, other: Truth) -> Truth:
    own = torch.arange(one.match.shape[1], device=one.match.device)
    returned = other.match.gather(1, one.match.clamp(min=0)) == own
    return Truth(one.match.masked_fill(~returned, UNMATCHED), one.alone)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Tokens of two views that are nodes of graphs.

    Attributes:
        source: (b, n) tokens of the first view.
        target: (b, n) tokens of the second view.
        source_real: (b, n) false for places that no token was left for.
        target_real: (b, n) as `source_real`.
        match: (b, n) target node of each source node, or `UNMATCHED`.
    """

    source: Int64[Tensor, "b n"]
    target: Int64[Tensor, "b n"]
    source_real: Bool[Tensor, "b n"]
    target_real: Bool[Tensor, "b n"]
    match: Int64[Tensor, "b n"]


@torch.no_grad()
def choose_nodes(
    truth: tuple[Truth, Truth], count: int, unmatched: float, keys: tuple[Float[Tensor, "b n"], Float[Tensor, "b m"]]
) -> Nodes:
    """Choose matched tokens and tokens that are surely alone; those of which nothing is sure are left out.

    The second view's nodes stand in the order of their keys, so that the place
    of a node says nothing of its partner.

    Args:
        truth: Of both views, see `true_match`.
        count: Nodes of each graph.
        unmatched: Share of the nodes that is left to tokens without partner.
        keys: A random number for each token: smaller ones are chosen first.
    """
    alone = round(unmatched * count)
    pairs = count - alone
    first, matched = _smallest(keys[0], truth[0].match != UNMATCHED, pairs)
    partner = truth[0].match.gather(1, first).clamp(min=0)
    rest = [_smallest(key, one.alone, alone) for key, one in zip(keys, truth, strict=True)]
    source, source_real = (torch.cat(part, dim=1) for part in zip((first, matched), rest[0], strict=True))
    target, target_real = (torch.cat(part, dim=1) for part in zip((partner, matched), rest[1], strict=True))
    order = keys[1].gather(1, target).argsort(dim=1, stable=True)
    match = order.argsort(dim=1, stable=True)
    match = torch.cat([match[:, :pairs].masked_fill(~matched, UNMATCHED), torch.full_like(rest[0][0], UNMATCHED)], 1)
    return Nodes(source, target.gather(1, order), source_real, target_real.gather(1, order), match)


def _smallest(keys: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places of the smallest keys among the allowed ones, and whether there were as many."""
    values, found = keys.masked_fill(~allowed, torch.inf).topk(min(count, keys.shape[1]), dim=1, largest=False)
    lack = count - found.shape[1]
    real = values.isfinite()
    return torch.nn.functional.pad(found, (0, lack)), torch.nn.functional.pad(real, (0, lack))
