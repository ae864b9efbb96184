"""The one interface of pretraining objectives: what a branch wants to see, and what it makes of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from pretrain.scene import Scene
from voxscale.batch import Losses
from voxscale.models.interface import Backbone
from voxscale.samples import OWN, Samples

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One trip of images through the network.

    Attributes:
        images: (n, 1, z, y, x) in 0..1; passes of the same tensor are made once, however many branches want them.
        decoder: Whether the decoder's features are wanted too.
        teacher: Whether it is the teacher that looks, without gradients.
        visible: (n, z, y, x) blocks that the network sees, see `Backbone.visible_features`; all if None.
        fill: Called with the encoder's features and the blocks; what it makes of them is given to the decoder.
    """

    images: Float[Tensor, "n 1 z y x"]
    decoder: bool = False
    teacher: bool = False
    visible: Bool[Tensor, "n z y x"] | None = None
    fill: nn.Module | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a network made of the images of a pass; of images of two dimensions z is 1.

    Attributes:
        features: Encoder features (n, channels, z, y, x), finest first.
        decoded: Decoder features on the first of these grids; empty if they were not wanted.
    """

    features: list[Tensor]
    decoded: list[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a branch wants of a step; made without weights, so that branches can share.

    Attributes:
        passes: Trips through the network by name.
        targets: Whatever the branch compares with, its own affair.
    """

    passes: Mapping[str, Pass]
    targets: Any


@dataclass(frozen=True, slots=True, eq=False)
class HeadRows:
    """What a head whose softmax is a distribution is given, for the probes' entropies.

    Attributes:
        features: One row for each thing that the head speaks of.
        samples: Number of each row's sample in the scene.
        scores: The head: maps rows to (n, classes) logits at its own temperature.
        labelled: Whether samples are those of the scene's labelled batch.
    """

    features: Float[Tensor, "n c"]
    samples: Int64[Tensor, " n"]
    scores: Callable[[Tensor], Tensor]
    labelled: bool = False


def pointwise(layer: nn.Module, rows: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
    """A convolution of one voxel, of single voxels; called as a module, as sharded weights are only there then."""
    return layer(rows.T[None, :, :, None, None])[0, :, :, 0, 0].T


class Objective(nn.Module, ABC):
    """A branch of the training: its heads, and the loss computed with them.

    Attributes:
        views_per_sample: Independent crops of each scan that it looks at.
        own_crop: Whether it looks at one more instead, the last of each sample, which no other objective has and which
            may be wider than the patch.
        wants_teacher: Whether some passes are the teacher's.
        weighed: Terms of its loss whose gradients are measured and logged one by one.
    """

    views_per_sample: int = 1
    own_crop: bool = False
    wants_teacher: bool = False
    weighed: tuple[str, ...] = ()

    def check(self, backbone: Backbone, patch: Size) -> None:  # most objectives take any
        """Refuse a backbone or patch that the objective cannot use.

        Raises:
            ConfigError: Naming the dotted key.
        """

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draw the heads' weights afresh and set their buffers."""

    @abstractmethod
    def plan(self, scene: Scene) -> Plan:
        """Choose views, draw targets; called without gradients."""

    @abstractmethod
    def losses(self, seen: Mapping[str, Seen], plan: Plan, teacher: "Objective | None", over: Samples = OWN) -> Losses:
        """Compute the loss.

        Args:
            seen: What became of each pass of the plan.
            plan: What `plan` returned.
            teacher: The same branch of the teacher, if there is one.
            over: Whose samples are the batch. The mean over ranks of values and gradients must be that of one rank
                with all samples, and all ranks must say the same to each other whatever they hold.
        """

    def heads_see(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, HeadRows]:  # noqa: ARG002
        """What heads whose softmax is a distribution are given, by a name for each, for the probes' entropies.

        Masked reconstruction and graph matching have no such head: they make grey values, and vectors.
        """
        return {}

    def pictures(self, seen: Mapping[str, Seen], plan: Plan) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """Volumes (z, y, x) of the first sample, for the report."""
        return {}


def crops_per_sample(objectives: Iterable[Objective]) -> int:
    """Crops of each sample that objectives want of the stream together."""
    shared, own = 0, 0
    for one in objectives:
        shared, own = (shared, 1) if one.own_crop else (max(shared, one.views_per_sample), own)
    return shared + own
