"""Crops without any content, such as air that clipping made one value: networks say zeros of them at first."""

from pathlib import Path

import pytest
import torch
from step_gradients import case, gradients


@pytest.mark.parametrize(
    "name", ["graphs of samples", "graphs of crops", "contrast of samples", "mixture", "parts", "parts of all options"]
)
def test_gradients_of_a_half_empty_batch_are_not_out_of_proportion(name: str, tmp_path: Path) -> None:
    """A vector of zeros has no direction; were it divided by a tiny length, its gradient would outdo all others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    full = gradients(case(name, tmp_path), 0, 1)
    half = gradients(case(name, tmp_path), 0, 1, "empty")
    torch.set_num_threads(threads)
    assert full.keys() == half.keys()
    terms = [key for key in full if key.endswith("gradient")]
    assert len(terms) >= 2
    for key in terms:
        assert float(full[key].norm()) > 0
        assert float(half[key].norm()) < 100 * float(full[key].norm()), key
