import json

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.plan import plan_task
from voxscale.config import from_dict, save_json, to_dict
from voxscale.contract import InputContract
from voxscale.errors import ConfigError, DataError
from voxscale.files import append_line
from voxscale.ledger import LEDGER
from voxscale.patches import Plan
from voxscale.store import open_store
from voxscale.store_root import create_store

SCANS = [((35, 50, 35), (1.0, 1.0, 1.0)), ((70, 50, 35), (0.5, 1.0, 1.00004)), ((35, 100, 18), (1.0, 0.5, 2.0))]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store"
    create_store(path, {1: "a"})
    for number, (shape, spacing) in enumerate(SCANS):
        entry = {
            "subject": "s", "modality": "MR", "modality_from": "values", "shape": shape, "spacing": spacing,
            "affine": np.diag([*spacing, 1.0]).tolist(), "dtype": "uint8", "slope": 1.0, "intercept": 0.0,
            "percentiles": {}, "foreground_box": [[0, 1]] * 3, "foreground": 1.0, "label": None, "bytes": 0,
        }  # fmt: skip
        append_line(path / LEDGER, {"id": str(number), "kind": "image", "status": "accepted", "entry": entry})
    append_line(path / LEDGER, {"id": "x", "kind": "image", "status": "rejected", "entry": None})
    return path


def test_median_spacing_and_shape(store):
    plan = plan_task(store)
    assert plan.contract == InputContract(spacing=(1.0, 1.0, 1.0))
    assert plan.patch == (32, 48, 32)
    assert plan.strides == ((2, 2, 2),) * 3 + ((1, 1, 1),) * 2
    assert open_store(store).contract == plan.contract


def test_a_given_contract_is_followed(store):
    contract = InputContract(spacing=(2.0, 2.0, 2.0), ct_window=(-200.0, 300.0))
    plan = plan_task(store, contract=contract)
    assert plan.contract == contract
    assert plan.patch == (16, 24, 16)  # 17.5 x 25 x 17.5 voxels
    assert open_store(store).contract == contract


def test_thick_slices_are_not_halved_before_their_planes_are_as_coarse(store):
    plan = plan_task(store, contract=InputContract(spacing=(4.0, 1.0, 1.0)))
    assert plan.patch == (8, 48, 32)  # the median scan has 8.75 x 50 x 35 voxels
    assert plan.strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1))


def test_budget(store):
    assert np.prod(plan_task(store, budget_voxels=4096).patch) <= 4096
    with pytest.raises(ConfigError, match="budget_voxels"):
        plan_task(store, budget_voxels=8)


def test_command_line(store, tmp_path, capsys):
    assert main(["plan", str(store), "--out", str(tmp_path / "plan.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "plan.json").read_text())
    assert from_dict(Plan, printed) == plan_task(store)
    save_json(InputContract(spacing=(2.0, 2.0, 2.0)), tmp_path / "contract.json")
    assert main(["plan", str(store), "--contract", str(tmp_path / "contract.json")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["plan", str(store), "--spacing", "2", "2", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["contract"] == to_dict(InputContract(spacing=(2.0, 2.0, 2.0)))


def test_bad_command_lines(store, tmp_path, caplog):
    save_json(InputContract(), tmp_path / "contract.json")
    both = ["--contract", str(tmp_path / "contract.json"), "--spacing", "1", "1", "1"]
    with pytest.raises(SystemExit):
        main(["plan", str(store), *both])
    assert main(["plan", str(tmp_path / "nothing")]) == 1
    assert "must be a store" in caplog.records[-1].message
    assert main(["plan", str(store), "--spacing", "0", "1", "1"]) == 1
    assert "contract.spacing" in caplog.records[-1].message


def test_an_empty_store_cannot_be_planned(tmp_path):
    create_store(tmp_path, {})
    with pytest.raises(DataError, match="at least one accepted volume"):
        plan_task(tmp_path)
