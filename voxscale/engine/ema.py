"""A teacher: an exponential moving average of the weights, kept in fp32 in slices, at any ZeRO stage.

Each rank averages the slices of the fp32 master weights that it updates itself,
element by element and without a word to other ranks. So the average of a
sharded model is sharded alike, and bf16 never rounds it: near a momentum of 1
a bf16 average would stand still.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from voxscale import dist
from voxscale.engine.checkpoint import stored
from voxscale.engine.config import EmaConfig
from voxscale.engine.memory import explained_states
from voxscale.engine.norm import mend_batch_norms, running_statistics
from voxscale.engine.pieces import Piece
from voxscale.engine.pooling import mend_pools
from voxscale.engine.state import Slice, master_slices
from voxscale.engine.types import Engine
from voxscale.errors import CheckpointError

KIND = "ema"
"""What the slices are called in a checkpoint."""


def momentum(config: EmaConfig, step: int, steps: int) -> float:
    """Weight of the old average in the update after one step.

    Args:
        config: First and last value, and how far back the average may look at the start.
        step: 0-based step.
        steps: Steps of the whole run.
    """
    done = step / max(steps - 1, 1)
    most = 1 - 1 / max(config.memory * steps, 1) if config.memory else 1.0
    return config.end - (config.end - min(config.start, most)) * 0.5 * (1 + math.cos(math.pi * done))


class Teacher:
    """Follows an engine's weights; pass it to `train` as `follower`.

    Its first weights are the engine's own, so it is made after the engine
    holds those of the start, and then restored if the run goes on.

    Args:
        engine: The engine to follow.
        config: Momentum.
        steps: Steps of the whole run.
        module: A network of the same architecture that computes with the averages. It is whole on every
            rank; it is moved to the engine's device, its parameters to the engine's number type, and never trained.

    Raises:
        CheckpointError: If the module's parameters are not the engine's.
        TrainingError: If memory runs out.
    """

    def __init__(self, engine: Engine, config: EmaConfig, steps: int, module: nn.Module) -> None:
        self._engine, self._config, self._steps = engine, config, steps
        dtype = next(engine.module.parameters()).dtype
        with explained_states(engine, "a teacher, whose network is whole on every rank"):
            self._slices: list[tuple[Slice, Tensor]] = [
                (part, value.detach().float().clone()) for part, value in master_slices(engine)
            ]
            self.module = module.to(engine.device).requires_grad_(False).eval()
            for p in self.module.parameters():  # not buffers, as DeepSpeed leaves them too
                p.data = p.data.to(dtype)
        mend_batch_norms(self.module)
        mend_pools(self.module)
        shapes = {name: tuple(p.shape) for name, p in self.module.named_parameters()}
        wrong = sorted(shapes.items() ^ {part.name: part.shape for part, _ in self._slices}.items())
        if wrong:
            raise CheckpointError(f"teacher must be of the engine's architecture; {wrong[0][0]} is not in both alike")
        self.refresh()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the update that the engine made in this step."""
        share = 1 - momentum(self._config, step, self._steps)
        for (_, average), (_, value) in zip(self._slices, master_slices(self._engine), strict=True):
            average.lerp_(value.to(average), share)

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the module to the averages, one tensor at a time; a collective call.

        Buffers become those of the trained model. Each rank has running statistics of its own there, of the samples
        that it saw; the teacher's are their mean over ranks, so it says the same everywhere. They are not averaged over
        steps once more: of the zeros and ones that they start with such an average would keep a share for long.
        """
        own = dict(self.module.named_parameters())
        for name, whole in self.averages():
            own[name].copy_(whole)
        for ours, theirs in zip(self.module.buffers(), self._engine.module.buffers(), strict=True):
            ours.copy_(theirs)
        running = running_statistics(self.module)
        if running and self._engine.dp_world_size > 1:
            mean = dist.mean(torch.cat([value.float().flatten() for value in running]))
            for value, own in zip(running, mean.split([value.numel() for value in running]), strict=True):
                value.copy_(own.view_as(value))

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole fp32 average); a collective call: every rank must iterate to the end."""
        for part, average in self._slices:
            whole = torch.zeros(math.prod(part.shape), device=self._engine.device)
            whole[part.start : part.stop] = average.to(whole.device)
            if self._engine.dp_world_size > 1:
                torch.distributed.all_reduce(whole)  # each element is zero on all ranks but one, so sums are exact
            yield part.name, part.whole(whole)

    def pieces(self) -> Iterator[Piece]:
        """This rank's slices for a checkpoint."""
        for part, average in self._slices:
            if part.stop > part.start:
                yield Piece(KIND, part.name, part.shape, part.start, average, part.turned)

    def restore(self, checkpoint: Path) -> None:
        """Take the averages of a checkpoint, whatever world size and stage wrote it; a collective call.

        Raises:
            CheckpointError: If it holds none, or those of another architecture.
        """
        found = stored(checkpoint, KIND)
        if found.shapes != {part.name: part.shape for part, _ in self._slices}:
            raise CheckpointError(
                f"{checkpoint.name} must hold a teacher of this architecture, not {len(found)} averages of another; "
                "go on from a run that was trained with this teacher"
            )
        for part, average in self._slices:
            if part.stop > part.start:
                average.copy_(found.part(part.name, part.start, part.stop, part.turned))
        self.refresh()
