import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from voxscale.errors import DataError
from voxscale.metrics import knn
from voxscale.metrics.knn import knn_classify


@pytest.mark.parametrize("k", [1, 4, 7])
def test_classes_are_those_of_scikit_learn(k, monkeypatch):
    monkeypatch.setattr(knn, "CHUNK", 60)  # several parts
    draw = np.random.default_rng(k)
    examples, queries = draw.normal(size=(80, 5)), draw.normal(size=(150, 5))
    labels = draw.integers(0, 4, 80)
    true = KNeighborsClassifier(k).fit(examples, labels).predict(queries)
    found = knn_classify(torch.from_numpy(examples), torch.from_numpy(labels), torch.from_numpy(queries), k)
    assert found.tolist() == true.tolist()


def test_more_neighbours_than_examples_are_refused():
    with pytest.raises(DataError, match="at least k = 3, not 2"):
        knn_classify(torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(1, 1), 3)
