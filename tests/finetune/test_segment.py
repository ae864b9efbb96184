import numpy as np
import torch
from tests_stores import make_store

from finetune.config import InferenceConfig
from finetune.segment import segment
from voxscale.contract import InputContract
from voxscale.store import open_store


def test_a_perfect_network_gives_the_scan_its_own_labels_back(tmp_path):
    """A threshold as network: whatever the grids, the labels lie where the scan is bright."""
    contract = InputContract(spacing=(1.5, 2.0, 1.2), ct_window=(-1000.0, 1000.0))
    (case,) = make_store(tmp_path / "store", 1, labelled=True, contract=contract, spacing=(2.0, 1.5, 1.5))
    store = open_store(tmp_path / "store")

    def predict(images):
        return torch.cat([0.3 - images, images - 0.3], dim=1) * 1000

    found = segment(predict, store, case, contract, (16, 16, 16), InferenceConfig(), torch.device("cpu"))
    body = store.volume(case).values() > -400  # -400 HU is 0.3
    assert found.shape == body.shape
    assert found.dtype == np.uint8
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.97  # all but a thin surface


def test_same_grid_is_exact(tmp_path):
    contract = InputContract(spacing=(2.0, 1.5, 1.5))
    (case,) = make_store(tmp_path / "store", 1, labelled=True, contract=contract)
    store = open_store(tmp_path / "store")

    def predict(images):
        return torch.cat([0.3 - images, images - 0.3], dim=1) * 1e6

    found = segment(predict, store, case, contract, (16, 16, 16), InferenceConfig(overlap=0.25), torch.device("cpu"))
    np.testing.assert_array_equal(found, store.volume(case).values() > -400)
