"""Config of the probes."""

from pathlib import Path

from voxscale.config import config, require


@config
class ProbeConfig:
    """When features are probed, and on what.

    Attributes:
        every: Steps between two probes; 0 for none. The first is before the first step and shows the untrained network.
        labelled: Store of labelled scans (as of fine-tuning); none leaves out what needs labels.
        cases: Labelled scans that are looked at, at most.
        crops: Crops of each, all around labelled voxels.
        examples: Voxels of each scan to learn from, half of them background, the others from all classes alike.
        queries: Voxels of each scan to be named, at most; they stand in a regular lattice.
        folds: Parts of the cross-validation, by subject; fewer where there are fewer subjects.
        k: Neighbours that vote.
        shrinkage: Of the linear probe, see `voxscale.metrics.linear_probe`.
        patches: Unlabelled crops, for ranks and deviations.
    """

    every: int = 0
    labelled: Path | None = None
    cases: int = 16
    crops: int = 2
    examples: int = 256
    queries: int = 2048
    folds: int = 4
    k: int = 5
    shrinkage: float = 0.1
    patches: int = 32

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError`."""
        require(self.every >= 0, "probe.every", "at least 0", self.every)
        for name in ("cases", "folds"):
            require(getattr(self, name) >= 2, f"probe.{name}", "at least 2", getattr(self, name))
        for name in ("crops", "queries", "k"):
            require(getattr(self, name) >= 1, f"probe.{name}", "at least 1", getattr(self, name))
        require(self.examples >= 2 * self.k, "probe.examples", "at least twice probe.k", self.examples)
        require(0 < self.shrinkage <= 1, "probe.shrinkage", "above 0 and at most 1", self.shrinkage)
        require(self.patches >= 4, "probe.patches", "at least 4", self.patches)
