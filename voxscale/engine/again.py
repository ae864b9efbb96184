"""A graph that is gone through backwards more than once, at every ZeRO stage."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

COUNTERS = ("applied_pre_backward_ref_cnt", "ds_grads_remaining")
"""What DeepSpeed 0.19.8 counts in each module under ZeRO-3: forward passes whose weights are still to be gathered for a
backward pass, and inputs whose gradients are still to come before its weights are given back."""


@contextmanager
def again(model: nn.Module) -> Generator[None]:
    """Leave DeepSpeed's counts as they are before a backward pass that keeps its graph, for the next one of that graph.

    Under ZeRO-3 a module's weights are gathered for as many backward passes as it had forward passes; a second one over
    the same graph finds them given back already. Without ZeRO-3 there are no counts, and nothing is done.

    Args:
        model: All modules that the graph may go through.
    """
    before = [
        (module, {name: vars(module)[name] for name in COUNTERS if name in vars(module)}) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, counts in before:
            vars(module).update(counts)
