"""A Swin transformer block for volumes: attention within windows, which every second block shifts."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class WindowAttention(nn.Module):
    """Attention within windows, with a bias for each difference of places.

    Attributes:
        relative_position_bias_table: A row per difference, a column per head.
        relative_position_index: Row of each pair of places.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 3, heads))
        self.register_buffer("relative_position_index", torch.empty(window**3, window**3, dtype=torch.long))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "w n c"], mask: Float[Tensor, "m n n"] | None) -> Float[Tensor, "w n c"]:
        """Apply attention to windows; windows come sample by sample, `mask` is for those of one sample."""
        w, n, c = x.shape
        q, k, v = self.qkv(x).view(w, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()].view(n, n, -1).permute(2, 0, 1)
        logits = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias
        if mask is not None:
            logits = (logits.view(-1, len(mask), self.heads, n, n) + mask.to(logits.dtype)[:, None]).view(w, -1, n, n)
        weights = F.dropout(logits.softmax(-1), self.dropout, self.training)
        y = self.proj((weights @ v).transpose(1, 2).reshape(w, n, c))
        return F.dropout(y, self.dropout, self.training)


class Perceptron(nn.Module):
    """Two linear layers with GELU between them and dropout behind each."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """Apply it."""
        y = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(y), self.dropout, self.training)


class SwinBlock(nn.Module):
    """Windowed attention and a perceptron, each behind a layer norm and added to its input (Liu et al. 2021)."""

    def __init__(self, channels: int, heads: int, window: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.window, self.drop_path = window, drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Perceptron(channels, 4 * channels, dropout)

    def forward(
        self, x: Float[Tensor, "b z y x c"], shift: int, mask: Float[Tensor, "m n n"] | None
    ) -> Float[Tensor, "b z y x c"]:
        """Apply the block.

        Args:
            x: Channels come last.
            shift: Places by which the windows are moved along each axis.
            mask: From `shift_mask`, where windows are moved.
        """
        places, pad = x.shape[1:4], [-n % self.window for n in x.shape[1:4]]
        y = F.pad(self.norm1(x), (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
        y = torch.roll(y, (-shift,) * 3, (1, 2, 3)) if shift else y
        y = join_windows(self.attn(split_windows(y, self.window), mask), y.shape, self.window)
        y = torch.roll(y, (shift,) * 3, (1, 2, 3)) if shift else y
        x = x + self._skip(y[:, : places[0], : places[1], : places[2]])
        return x + self._skip(self.mlp(self.norm2(x)))

    def _skip(self, y: Tensor) -> Tensor:
        """Leave the branch out for some samples in training, and scale it up for the others."""
        if not self.training or not self.drop_path:
            return y
        kept = y.new_empty(len(y), *[1] * (y.ndim - 1)).bernoulli_(1 - self.drop_path)
        return y * kept / (1 - self.drop_path)


def split_windows(x: Float[Tensor, "b z y x c"], window: int) -> Float[Tensor, "w n c"]:
    """Cut into cubes of `window` places, sample by sample."""
    b, z, y, w, c = x.shape
    parts = x.view(b, z // window, window, y // window, window, w // window, window, c)
    return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, c)


def join_windows(windows: Float[Tensor, "w n c"], shape: Sequence[int], window: int) -> Float[Tensor, "b z y x c"]:
    """Undo `split_windows`."""
    b, z, y, w, c = shape
    parts = windows.view(b, z // window, y // window, w // window, window, window, window, c)
    return parts.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, z, y, w, c)


def shift_mask(places: Sequence[int], window: int, shift: int, device: torch.device) -> Float[Tensor, "m n n"]:
    """-100 where two places of a moved window come from opposite ends of the volume, else 0."""
    padded = [math.ceil(n / window) * window for n in places]
    region = torch.zeros(1, *padded, 1, device=device)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (z, y, x) in enumerate(itertools.product(bands, repeat=3)):
        region[:, z, y, x] = number
    windows = split_windows(region, window)[..., 0]
    return (windows[:, None] != windows[:, :, None]).float() * -100.0


def mis_fm_positions(window: int) -> Int[Tensor, "n n"]:
    """Row of the bias table for each pair of places, as MIS-FM numbers them.

    The steps along z and y are 3w-1 and 2w-1 rows instead of (2w-1)^2 and 2w-1, so
    differences share rows; the released weights were trained so.
    """
    places = torch.cartesian_prod(*[torch.arange(window)] * 3)
    difference = places[:, None] - places[None] + window - 1
    return (difference * torch.tensor([3 * window - 1, 2 * window - 1, 1])).sum(-1)


def swin_flops(places: Sequence[int], channels: int, window: int) -> int:
    """Operations of one block: attention within padded windows, and a perceptron of four widths."""
    padded = math.prod(math.ceil(n / window) * window for n in places)
    return 8 * padded * channels**2 + 4 * padded * window**3 * channels + 16 * math.prod(places) * channels**2
