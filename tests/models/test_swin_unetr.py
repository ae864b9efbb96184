import monai.networks.nets
import torch

from voxscale.models.swin_unetr import SwinUNETR, SwinUNETRConfig, relative_positions
from voxscale.seed import torch_generator


def test_outputs_equal_those_of_monai_with_the_same_weights() -> None:
    model = SwinUNETR(SwinUNETRConfig(width=12, classes=3, heads=1)).eval()
    theirs = monai.networks.nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=12).eval()
    index = theirs.swinViT.layers1[0].blocks[0].attn.relative_position_index
    assert torch.equal(index, relative_positions(7, 3))
    theirs.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(1, 1, 64, 32, 32, generator=torch_generator(0))
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], theirs(x))
