"""Blocks compiled in place: all of them, however many shapes they have."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from voxscale.engine.deepspeed import compile_blocks


class Block(nn.Module):
    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


# The compiler looks at it and hides the warning, unless warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_more_shapes_than_torch_compiles_by_itself_are_all_compiled():
    model = nn.Sequential(*[Block(n, n + 1) for n in range(1, 13)])
    names = list(model.state_dict())
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    torch._dynamo.reset()
    counters.clear()
    try:
        assert compile_blocks(model, backend="eager") == 12
        assert torch.equal(model(x), expected)
        assert counters["stats"]["unique_graphs"] == 12  # torch stops at 8 unless told otherwise
        model(x)
        assert counters["stats"]["unique_graphs"] == 12
    finally:
        torch._dynamo.reset()
        counters.clear()
    assert list(model.state_dict()) == names
