"""Choosing spacing, patch and strides for a store: `python -m data_prep plan STORE`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from voxscale.config import config, load_json, parse, require, save_json, to_dict
from voxscale.contract import InputContract
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.index import Index
from voxscale.patches import Plan, plan_patch
from voxscale.store import open_store
from voxscale.store_root import stamp_contract

BUDGET_VOXELS = 48**3


def plan_task(
    store: Path,
    budget_voxels: int = BUDGET_VOXELS,
    contract: InputContract | None = None,
    dims: Literal[2, 3] = 3,
) -> Plan:
    """Plan a store's patch and stamp the contract into the store.

    Args:
        store: The store's folder.
        budget_voxels: Most voxels of a patch.
        contract: How scans become network input; None takes the defaults with
            the median spacing of the accepted scans, rounded to 0.001 mm.
        dims: 3, or 2 for patches of one slice, to which 2D images count as well.

    Raises:
        DataError: With reason `empty_store` if the store has no accepted scan.
        ConfigError: If the budget is too small.
    """
    shapes, spacings = _sizes(open_store(store).entries, dims)
    if not len(shapes):
        raise DataError("store must hold at least one accepted volume; see its ledger.jsonl", "empty_store")
    if contract is None:
        z, y, x = (round(float(mm), 3) for mm in np.median(spacings, axis=0))
        contract = InputContract(spacing=(z, y, x))
    extents = shapes * spacings
    shape = np.median(extents / np.array(contract.spacing), axis=0)
    patch, strides = plan_patch([float(n) for n in shape], budget_voxels, dims, contract.spacing)
    stamp_contract(store, contract)
    return Plan(contract=contract, patch=patch, strides=strides)


def _sizes(entries: Mapping[str, Entry], dims: Literal[2, 3]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Shape and spacing of every scan that counts, (n, 3) each, from the columns of the index if there is one."""
    if isinstance(entries, Index):
        shapes, spacings = entries.column("shape"), entries.column("spacing")
    else:
        shapes = np.array([entry.shape for entry in entries.values()])
        spacings = np.array([entry.spacing for entry in entries.values()])
    volumes = (shapes.reshape(-1, 3)[:, 0] != 1) | (dims == 2)
    return shapes.reshape(-1, 3)[volumes].astype(np.int64), spacings.reshape(-1, 3)[volumes].astype(np.float64)


@config
class PlanArgs:
    """Choose spacing, patch and strides for a store.

    Attributes:
        store: The store.
        contract: JSON file of an input contract to follow, such as one from a checkpoint.
        spacing: Target spacing along z, y, x in mm; None takes the contract's, else the median.
        budget_voxels: Most voxels of a patch.
        dims: 2 for patches of one slice, of volumes and 2D images, for models of two dimensions.
        out: Where to write the plan as well.
    """

    store: tyro.conf.Positional[Path]
    contract: Path | None = None
    spacing: tuple[float, float, float] | None = None
    budget_voxels: int = BUDGET_VOXELS
    dims: Literal[2, 3] = 3
    out: Path | None = None

    def __post_init__(self) -> None:
        """Check that at most one of contract and spacing is given; raises `ConfigError`."""
        both = self.contract is not None and self.spacing is not None
        require(not both, "spacing", "left out where a contract is given", self.spacing)


def main(args: Sequence[str]) -> int:
    """Command line of `python -m data_prep plan`; prints the plan as one JSON line and returns the exit status."""
    given = parse(PlanArgs, None, args, "python -m data_prep plan")
    contract = None if given.contract is None else load_json(InputContract, given.contract)
    if given.spacing is not None:
        contract = replace(InputContract(), spacing=given.spacing)
    plan = plan_task(given.store, given.budget_voxels, contract, given.dims)
    if given.out is not None:
        save_json(plan, given.out)
    print(json.dumps(to_dict(plan)))
    return 0
