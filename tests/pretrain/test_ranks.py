"""Two ranks find the gradients of one: term by term, in each step, of all objectives that need no labels."""

from pathlib import Path

import pytest
import step_gradients
import torch

WORKER = Path(step_gradients.__file__)


@pytest.mark.slow
def test_the_mean_gradient_of_two_ranks_is_that_of_one(ranks, tmp_path):
    """But of the terms that are pooled over a rank's samples, which shows that the comparison notices a difference."""
    torch.set_num_threads(1)
    one = step_gradients.gradients(0, 1)
    ranks(WORKER, 2, str(tmp_path / "two.pt"))
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert one.keys() == two.keys()
    assert len({name.split("/")[0] for name in one}) == 5 * step_gradients.STEPS
    for name, whole in one.items():
        assert float(whole.norm()) > 0, name
        apart = float((two[name] - whole).norm() / whole.norm())
        if name.split()[1] in step_gradients.POOLED:
            assert apart > 1e-3, name
        else:
            assert apart < 1e-4, (name, apart)
