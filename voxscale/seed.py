"""Randomness with a name: every generator is a pure function of a seed and a path of keys."""

import hashlib

import numpy as np
import torch


def derive(seed: int, *keys: int | str) -> int:
    """Derive a 63-bit seed from a seed and a path of keys, the same on every machine."""
    text = "/".join([str(seed), *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def rng(seed: int, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for a seed and a path of keys."""
    return np.random.Generator(np.random.Philox(derive(seed, *keys)))


def torch_generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on a device for a seed and a path of keys."""
    return torch.Generator(device=device).manual_seed(derive(seed, *keys))
