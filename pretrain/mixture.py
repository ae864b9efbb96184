"""Which objectives are trained together, and with what weights."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pretrain.objectives.fusion_config import VolumeFusionConfig
from pretrain.objectives.graph_config import GraphMatchingConfig
from pretrain.objectives.graph_matching import GraphMatching
from pretrain.objectives.interface import Objective
from pretrain.objectives.masked_reconstruction import MaskedReconstruction, MaskedReconstructionConfig
from pretrain.objectives.part_whole import PartWhole
from pretrain.objectives.part_whole_config import PartWholeConfig
from pretrain.objectives.supervised import Supervised, SupervisedConfig
from pretrain.objectives.volume_fusion import VolumeFusion
from voxscale.config import config, require
from voxscale.models.interface import Backbone


@config
class WeightsConfig:
    """Weight of each objective's loss; one with weight 0 is not built.

    Attributes:
        volume_fusion: Of Volume Fusion.
        graph_matching: Of second-order graph matching.
        part_whole: Of self-distillation, composing and decomposing.
        masked_reconstruction: Of masked reconstruction.
        supervised: Of segmentation of labelled scans.
        patch_matching: Of the same between tokens of two views.
    """

    volume_fusion: float = 1.0
    graph_matching: float = 0.0
    part_whole: float = 0.0
    masked_reconstruction: float = 0.0
    supervised: float = 0.0
    patch_matching: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        for name, value in self.each().items():
            require(value >= 0, f"objective.weights.{name}", "at least 0", value)

    def each(self) -> dict[str, float]:
        """Weights by the objectives' names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@config
class MixtureConfig:
    """One objective or several over one backbone.

    Attributes:
        weights: At the start of the run.
        last_weights: At its end, linearly from `weights`; None to keep them.
        moving: Share of the run at which weights begin to move, and at which they have arrived.
        balance: `gradients`: each loss is scaled besides so that its gradient at the backbone's features is as
            large as the others', and the weights are shares of the gradient; `none`: weights are those of the losses.
        measure_every: Steps between measurements of each objective's gradient; 0 for none. A measurement costs a
            backward pass through the heads and the decoder.
        volume_fusion: Volume Fusion.
        graph_matching: Second-order graph matching.
        part_whole: Self-distillation, composing and decomposing.
        masked_reconstruction: Masked reconstruction.
        supervised: Segmentation of labelled scans.
        patch_matching: The same between tokens of two views, so that both can be trained at once.
    """

    weights: WeightsConfig = WeightsConfig()
    last_weights: WeightsConfig | None = None
    moving: tuple[float, float] = (0.0, 1.0)
    balance: Literal["none", "gradients"] = "none"
    measure_every: int = 50
    volume_fusion: VolumeFusionConfig = VolumeFusionConfig()
    graph_matching: GraphMatchingConfig = GraphMatchingConfig()
    part_whole: PartWholeConfig = PartWholeConfig()
    masked_reconstruction: MaskedReconstructionConfig = MaskedReconstructionConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    patch_matching: GraphMatchingConfig = GraphMatchingConfig(mode="patch")

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        start, end = self.moving
        require(0 <= start <= end <= 1, "objective.moving", "two rising shares", self.moving)
        require(self.measure_every >= 0, "objective.measure_every", "at least 0", self.measure_every)
        counted = self.balance == "none" or self.measure_every > 0
        require(counted, "objective.measure_every", "positive to balance by gradients", self.measure_every)
        require(bool(self.active), "objective.weights", "positive for at least one objective", self.weights.each())

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the objectives that count at some time."""
        last = (self.last_weights or self.weights).each()
        return tuple(name for name, weight in self.weights.each().items() if weight > 0 or last[name] > 0)

    def weights_at(self, progress: float) -> dict[str, float]:
        """Weights of the active objectives when a share of the run is done."""
        start, end = self.moving
        done = min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)
        first, last = self.weights.each(), (self.last_weights or self.weights).each()
        return {name: first[name] + done * (last[name] - first[name]) for name in self.active}


def branches(config: MixtureConfig, backbone: Backbone) -> Mapping[str, Objective]:
    """Make the active objectives, whose names are those of the config's fields."""
    makers = {
        "volume_fusion": lambda: VolumeFusion(config.volume_fusion, backbone),
        "graph_matching": lambda: GraphMatching(config.graph_matching, backbone),
        "part_whole": lambda: PartWhole(config.part_whole, backbone),
        "masked_reconstruction": lambda: MaskedReconstruction(config.masked_reconstruction, backbone),
        "supervised": lambda: Supervised(config.supervised, backbone),
        "patch_matching": lambda: GraphMatching(config.patch_matching, backbone),
    }
    return {name: makers[name]() for name in config.active}
