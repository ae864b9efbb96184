import dataclasses

import numpy as np
import pytest
import torch

from voxscale.batch import Batch, Losses, Patch, Views, collate
from voxscale.contract import InputContract, foreground_threshold, require_same
from voxscale.errors import ContractError, DataError


def patch(shape=(2, 3, 4), dtype=np.int16, label=False, index=0):
    voxels = (np.arange(np.prod(shape)).reshape(shape) + 1).astype(dtype)
    return Patch(voxels, (voxels % 3).astype(np.uint8) if label else None, np.eye(3, 4), (2.0, -1.0), 5, index, "v")


def test_collate_pads_at_the_far_end_and_keeps_the_number_type():
    batch = collate([patch((2, 3, 4), index=7), patch((3, 2, 4), index=8)])
    assert batch.voxels.shape == (2, 1, 3, 3, 4)
    assert batch.voxels.dtype == torch.int16
    assert batch.sizes.tolist() == [[2, 3, 4], [3, 2, 4]]
    assert batch.voxels[0, 0, 2].abs().sum() == 0
    assert batch.voxels[1, 0, :, 2].abs().sum() == 0
    assert batch.indices == (7, 8)
    assert batch.label is None


def test_crops_of_one_scan_are_known_by_a_number_and_places_if_all_have_one():
    parts = [dataclasses.replace(patch(index=n), volume=name) for n, name in enumerate("baab")]
    batch = collate(parts)
    assert batch.scans == (0, 1, 1, 0)
    assert batch.mm is None
    placed = [dataclasses.replace(p, mm=np.eye(3, 4) * n) for n, p in enumerate(parts)]
    assert collate(placed).mm.tolist() == [(np.eye(3, 4) * n).tolist() for n in range(4)]
    assert collate([*placed, parts[0]]).mm is None


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ((np.uint8, np.int16), torch.int16),
        ((np.uint16, np.uint16), torch.int32),
        ((np.uint16, np.int16), torch.int32),
        ((np.float32, np.int16), torch.float32),
        ((np.float64, np.int32), torch.float32),
    ],
)
def test_collate_promotes_without_losing_values(types, expected):
    batch = collate([patch(dtype=t) for t in types])
    assert batch.voxels.dtype == expected
    assert batch.voxels[1, 0, 1, 2, 3] == 24


def test_labels_travel_only_if_all_patches_have_one():
    assert collate([patch(label=True), patch(label=True)]).label is not None
    assert collate([patch(label=True), patch()]).label is None


def test_total_is_the_weighted_sum():
    losses = Losses({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"a": 0.5, "b": 2.0}, {})
    assert float(losses.total) == 7.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Patch(np.zeros((2, 2)), None, np.eye(3, 4), (1, 0), 0, 0, "v"),
        lambda: Patch(np.zeros((2, 2, 2)), np.zeros((2, 2, 1), np.uint8), np.eye(3, 4), (1, 0), 0, 0, "v"),
        lambda: Patch(np.zeros((2, 2, 2)), None, np.eye(3), (1, 0), 0, 0, "v"),
        lambda: dataclasses.replace(patch(), mm=np.full((3, 4), np.nan)),
        lambda: Losses({}, {}, {}),
        lambda: Losses({"a": torch.zeros(2)}, {"a": 1.0}, {}),
        lambda: Losses({"a": torch.zeros(())}, {}, {}),
        lambda: Views(torch.zeros(1, 2, 1, 2, 2), torch.zeros(1, 2, 1, 2, 2, dtype=torch.bool), (1,)),
        lambda: Batch(
            torch.zeros(2, 1, 2, 2, 2), None, torch.ones(1, 3), torch.ones(2, 3, 4), torch.ones(2, 2), (1, 2), (1, 2)
        ),
    ],
)
def test_bad_shapes_are_refused(make):
    with pytest.raises(DataError):
        make()


def test_contract_window():
    contract = InputContract(ct_window=(-100.0, 300.0), mr_percentiles=(1.0, 99.0))
    percentiles = {"1.0": 5.0, "99.0": 25.0, "99.5": 30.0}
    assert contract.window("CT", percentiles) == (-100, 300)
    assert contract.window("MR", percentiles) == (5, 25)
    assert contract.window("MR", {"1.0": 5.0, "99.0": 5.0}) == (5, 6)  # flat scans do not divide by zero
    assert foreground_threshold("CT", percentiles) == -600
    assert foreground_threshold("MR", percentiles) == 3


def test_other_contract_is_refused_by_field():
    require_same(InputContract(), InputContract(), "store")
    with pytest.raises(
        ContractError, match=r"store .* contract.spacing must be \[1.5, 1.5, 1.5\], not \[2.0, 1.5, 1.5\]"
    ):
        require_same(InputContract(), InputContract(spacing=(2.0, 1.5, 1.5)), "store")
