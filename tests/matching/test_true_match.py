"""Tokens that show the same place, by hand and by trying all pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxscale.errors import DataError
from voxscale.matching.dustbin import UNMATCHED
from voxscale.matching.neighbours import nearest_places
from voxscale.matching.true_match import TIE, Truth, cells, choose_nodes, places, true_match
from voxscale.seed import torch_generator

SIZE, GRID = (8, 8, 8), (4, 4, 4)


def view(start=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0)) -> Tensor:
    return torch.from_numpy(np.column_stack([np.diag(scale), start]))[None]


def matched(second: Tensor, first: Tensor | None = None) -> tuple[Truth, Truth]:
    return true_match(cells(view() if first is None else first, SIZE, GRID), cells(second, SIZE, GRID), (GRID, GRID))


def number(z: int, y: int, x: int) -> int:
    return 16 * z + 4 * y + x


def test_a_shift_by_one_token_matches_the_next_one_and_leaves_the_first_and_last_alone() -> None:
    one, other = matched(view(start=(2.0, 0.0, 0.0)))
    for z in range(4):
        want = number(z - 1, 1, 2) if z else UNMATCHED
        assert int(one.match[0, number(z, 1, 2)]) == want
        assert bool(one.alone[0, number(z, 1, 2)]) == (z == 0)
        assert bool(other.alone[0, number(z, 1, 2)]) == (z == 3)


def test_a_mirrored_view_is_matched_mirrored() -> None:
    one, _ = matched(view(start=(0.0, 7.0, 7.0), scale=(1.0, -1.0, -1.0)))
    for z, y, x in ((0, 0, 0), (1, 2, 3), (3, 1, 0)):
        assert int(one.match[0, number(z, y, x)]) == number(z, 3 - y, 3 - x)
    assert not one.alone.any()


def test_a_place_halfway_between_two_tokens_is_matched_to_neither() -> None:
    one, other = matched(view(start=(1.0, 0.0, 0.0)))
    assert (one.match == UNMATCHED).all()
    assert not one.alone.any()  # all of them overlap with something
    assert not other.alone.any()
    # The middle of the first view at twice the resolution: its centres lie on the faces of finer tokens.
    one, other = matched(view(start=(1.75, 1.75, 1.75), scale=(0.5, 0.5, 0.5)))
    assert (one.match == UNMATCHED).all()
    inner = torch.zeros(4, 4, 4, dtype=torch.bool)
    inner[1:3, 1:3, 1:3] = True
    assert torch.equal(one.alone[0].view(4, 4, 4), ~inner)
    assert not other.alone.any()


share = st.floats(0.4, 1.0)
part = st.tuples(share, share, share, st.tuples(*[st.floats(0.0, 1.0)] * 3), st.tuples(*[st.booleans()] * 3))


def drawn(case) -> Tensor:
    *shares, room, flips = case
    scale = np.array(shares)
    start = (1 - scale) * 8 * np.array(room) + scale / 2 - 0.5
    start = np.where(flips, start + 7 * scale, start)
    return view(start, np.where(flips, -scale, scale))


@settings(max_examples=60, deadline=None)
@given(part, part)
def test_pairs_are_mutually_nearest_and_lone_tokens_overlap_with_none(first, second) -> None:
    maps = [cells(drawn(case), SIZE, GRID) for case in (first, second)]
    one, other = true_match(maps[0], maps[1], (GRID, GRID))
    centres = [places(m, GRID)[0].numpy() for m in maps]
    sides = [m[0, :3, :3].abs().sum(dim=1).numpy() for m in maps]
    apart = np.abs(centres[0][:, None] - centres[1][None])
    # Whether centres lie in each other's tokens, and clearly so.
    within = [(apart / side).max(axis=2) for side in sides]
    clear = (within[0] <= 0.5 - TIE) & (within[1] <= 0.5 - TIE)
    sure = [(np.abs(w - (0.5 - TIE)) > 1e-9).all() for w in within]  # else rounding decides
    if all(sure):
        found = np.zeros_like(clear)
        rows = np.flatnonzero(one.match[0].numpy() != UNMATCHED)
        found[rows, one.match[0].numpy()[rows]] = True
        assert np.array_equal(found, clear)
        assert clear.sum(axis=0).max(initial=0) <= 1
        assert clear.sum(axis=1).max(initial=0) <= 1
        back = np.zeros_like(clear)
        rows = np.flatnonzero(other.match[0].numpy() != UNMATCHED)
        back[other.match[0].numpy()[rows], rows] = True
        assert np.array_equal(back, clear)
    overlap = (apart < (sides[0] + sides[1]) / 2 - 1e-5).all(axis=2)
    assert not overlap[one.alone[0].numpy()].any()
    assert not overlap[:, other.alone[0].numpy()].any()


def test_nodes_are_pairs_and_lone_tokens_in_an_order_that_tells_nothing() -> None:
    truth = matched(view(start=(2.0, 0.0, 0.0)))
    keys = (torch.rand(1, 64, generator=torch_generator(s)) for s in range(2))
    nodes = choose_nodes(truth, 40, 0.25, tuple(keys))
    assert nodes.source_real.all()
    assert nodes.target_real.all()
    assert int((nodes.match != UNMATCHED).sum()) == 30
    for side, alone in ((nodes.source, truth[0].alone), (nodes.target, truth[1].alone)):
        assert len(set(side[0].tolist())) == 40
        assert int(alone[0, side[0]].sum()) == 10
    for token, at in zip(nodes.source[0].tolist(), nodes.match[0].tolist(), strict=True):
        if at != UNMATCHED:
            assert int(nodes.target[0, at]) == int(truth[0].match[0, token])
    assert (nodes.match[0, :30] == torch.arange(30)).float().mean() < 0.2
    few = choose_nodes(matched(view(start=(6.0, 0.0, 0.0))), 40, 0.25, (torch.rand(1, 64), torch.rand(1, 64)))
    assert int((few.match != UNMATCHED).sum()) == 16
    assert int(few.source_real.sum()) == int(few.target_real.sum()) == 26


def test_edges_on_a_grid_follow_the_places_and_not_the_order() -> None:
    grid = places(cells(view(scale=(2.0, 1.0, 1.0)), SIZE, GRID), GRID)
    order = torch.randperm(64, generator=torch_generator(0))
    edges, other = nearest_places(grid, 5), nearest_places(grid[:, order], 5)
    assert torch.equal(order[other[0]], edges[0, order])
    # A token inside has four neighbours 2 mm away in the plane, and none as near along z.
    assert set(edges[0, number(1, 1, 1), :4].tolist()) == {number(1, y, x) for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))}
    with pytest.raises(DataError, match="^k must be"):
        nearest_places(grid, 64)
