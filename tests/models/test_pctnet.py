import dataclasses

import torch

from voxscale.models.pctnet import PCTNet, PCTNetConfig
from voxscale.models.swin_block import join_windows, shift_mask, split_windows


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_all_modes_together_have_the_published_number_of_weights() -> None:
    models = [PCTNet(PCTNetConfig(mode=mode, classes=5, heads=4), "meta") for mode in (0, 1, 2)]
    core = count(models[0].pyramid_ct)
    assert round((sum(map(count, models)) - 2 * core) / 1e6, 2) == 45.29  # the published class allocates all three
    assert round(count(models[1]) / 1e6, 1) == 44.2


def test_modes_differ_at_the_fine_levels_only() -> None:
    first, second = (PCTNet(PCTNetConfig(mode=mode), "meta") for mode in (0, 1))
    assert {k: v.shape for k, v in first.pyramid_ct.state_dict().items()} == {
        k: v.shape for k, v in second.pyramid_ct.state_dict().items()
    }
    assert dataclasses.replace(first.config, mode=1) == second.config


def test_windows_come_back_together() -> None:
    x = torch.arange(2 * 6 * 4 * 8 * 3.0).view(2, 6, 4, 8, 3)
    windows = split_windows(x, 2)
    assert windows.shape == (2 * 3 * 2 * 4, 8, 3)
    assert torch.equal(windows[0, -1], x[0, 1, 1, 1])
    assert torch.equal(join_windows(windows, x.shape, 2), x)


def test_places_from_opposite_ends_do_not_see_each_other() -> None:
    mask = shift_mask((4, 4, 4), 2, 1, torch.device("cpu"))
    assert mask.shape == (8, 8, 8)
    assert not mask[0].any()  # the first window holds neighbours only
    assert mask[-1].eq(0).sum() == 8  # of the last, each place only itself
