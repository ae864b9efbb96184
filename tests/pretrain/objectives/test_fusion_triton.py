"""The kernel for GPUs against the plain functions; on CPUs only where triton is there, in its interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.fusion_labels import draw_grids, sample_labels
from pretrain.objectives.volume_fusion import fuse
from voxscale.seed import rng, torch_generator

pytest.importorskip("triton")
SIZE, SEEDS = (17, 20, 33), (1, 2, 3)


def check(device: str) -> None:
    """Labels are equal, blended values too but for the order of a multiplication and an addition."""
    from pretrain.objectives.fusion_triton import paint_and_fuse

    config = VolumeFusionConfig(block_min=3, block_max=9)
    pair = torch.rand(2, 3, 1, *SIZE, generator=torch_generator(0))
    label = sample_labels(SEEDS, SIZE, config)
    draws = [rng(seed, "fusion") for seed in SEEDS]
    table, places = draw_grids(draws, SIZE, config, torch.device(device))
    got = paint_and_fuse(*pair.to(device), table, tuple(place.int() for place in places), config.levels)
    assert len(label.unique()) == config.classes
    assert torch.equal(got[0].cpu(), label)
    torch.testing.assert_close(got[1].cpu(), fuse(*pair, label, config.levels), rtol=1e-6, atol=1e-6)


def test_label_and_image_are_those_of_the_plain_functions() -> None:
    """In a process of its own without a GPU, as triton reads its interpreter's switch when it is imported."""
    if torch.cuda.is_available():
        check("cuda")
        return
    found = "import sys; sys.path[:0] = ['tests/pretrain/objectives', '.']; "
    command = found + "from test_fusion_triton import check; check('cpu')"
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", command], env=env, check=True)
