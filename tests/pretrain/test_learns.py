"""The pretext task can be learnt: views, fusion, labels and loss speak of the same voxels."""

import pytest
import torch
from torch import nn

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.volume_fusion import volume_fusion
from voxscale.batch import Views
from voxscale.seed import torch_generator


@pytest.mark.slow
def test_a_tiny_network_names_the_levels_of_a_dark_and_a_bright_crop():
    """With a dark background and a bright foreground the level can be read off the value of a voxel."""
    generator = torch_generator(0, "learns")
    network = nn.Sequential(nn.Conv3d(1, 32, 1), nn.ReLU(), nn.Conv3d(32, 5, 1))
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    config = VolumeFusionConfig(block_min=4, block_max=8)
    first = last = float("nan")
    accuracy = torch.zeros(())
    for step in range(150):
        noise = torch.rand(2, 2, 1, 16, 16, 16, generator=generator) * 0.02
        images = noise + torch.tensor([0.0, 0.98]).view(1, 2, 1, 1, 1, 1)
        views = Views(images, torch.ones_like(images, dtype=torch.bool), (2 * step, 2 * step + 1))
        losses = volume_fusion(network, views, config)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        last = float(losses.total.detach())
        first = last if step == 0 else first
        accuracy = losses.watched["pretext_accuracy"]
    assert last < 0.3 * first
    assert float(accuracy) > 0.95
