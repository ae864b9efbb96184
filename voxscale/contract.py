"""`InputContract`: what a network may expect of its input, kept with data and weights alike."""

from collections.abc import Mapping
from typing import Literal

from voxscale.config import config, require, to_dict
from voxscale.errors import ContractError
from voxscale.volume import Modality

PERCENTILES = (0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
"""Percentiles of all voxels that ingest records for every volume."""


@config
class InputContract:
    """How stored scans become network input; applied on the device, saved in every checkpoint.

    Values are mapped linearly so that the two ends of the window become 0 and
    1, then clipped. Outside the scan the input is 0.

    Attributes:
        spacing: Target voxel spacing along z, y, x in mm.
        resampling: Interpolation of images (labels always take the nearest voxel).
        ct_window: HU that become 0 and 1.
        mr_percentiles: Percentiles of the volume that become 0 and 1.
    """

    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    resampling: Literal["trilinear"] = "trilinear"
    ct_window: tuple[float, float] = (-1000.0, 1000.0)
    mr_percentiles: tuple[float, float] = (0.5, 99.5)

    def __post_init__(self) -> None:
        """Check ranges; raises `ConfigError` with the dotted name."""
        require(all(0.05 <= s <= 20 for s in self.spacing), "contract.spacing", "0.05 to 20 mm per axis", self.spacing)
        low, high = self.ct_window
        require(low < high, "contract.ct_window", "two rising HU values", self.ct_window)
        ok = self.mr_percentiles[0] < self.mr_percentiles[1] and all(p in PERCENTILES for p in self.mr_percentiles)
        require(ok, "contract.mr_percentiles", "two rising recorded percentiles", self.mr_percentiles, PERCENTILES)

    def window(self, modality: Modality, percentiles: Mapping[str, float]) -> tuple[float, float]:
        """The two values of one scan that become 0 and 1.

        Args:
            modality: Of the scan.
            percentiles: As recorded at ingest, keyed by `str(percentile)`.
        """
        if modality == "CT":
            return self.ct_window
        low, high = (percentiles[str(p)] for p in self.mr_percentiles)
        return (low, high) if high > low else (low, low + 1.0)


def require_same(expected: InputContract, found: InputContract, what: str) -> None:
    """Refuse data that was prepared under another contract.

    Raises:
        ContractError: Naming each field that differs.
    """
    want, have = to_dict(expected), to_dict(found)
    wrong = [f"contract.{key} must be {want[key]}, not {have[key]}" for key in want if want[key] != have[key]]
    if wrong:
        raise ContractError(f"{what} was prepared under another contract: {'; '.join(wrong)}; run data_prep plan again")


def foreground_threshold(modality: Modality, percentiles: Mapping[str, float]) -> float:
    """Value above which a voxel counts as body.

    CT: -600 HU, below fat and above lung. MR: a tenth of the 99.5th percentile.
    """
    return -600.0 if modality == "CT" else 0.1 * percentiles["99.5"]
