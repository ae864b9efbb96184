import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from voxscale.errors import DataError
from voxscale.metrics.linear_probe import linear_classify


def test_classes_are_those_of_scikit_learns_ridge():
    draw = np.random.default_rng(0)
    examples, queries = draw.normal(size=(90, 6)) + 3, draw.normal(size=(200, 6)) + 3
    labels = (examples @ draw.normal(size=(6, 3)) + draw.normal(size=(90, 3))).argmax(1)
    fitted = Ridge(alpha=0.05 * 90).fit(examples, np.eye(3)[labels])
    found = linear_classify(*(torch.from_numpy(a) for a in (examples, labels, queries)), classes=3, penalty=0.05)
    assert found.tolist() == fitted.predict(queries).argmax(1).tolist()


def test_a_feature_that_never_varies_and_a_class_that_never_appears_do_no_harm():
    examples = torch.tensor([[0.0, 5.0], [1.0, 5.0]])
    found = linear_classify(examples, torch.tensor([0, 2]), examples, classes=3, penalty=0.01)
    assert found.tolist() == [0, 2]


def test_no_penalty_is_refused():
    with pytest.raises(DataError, match="penalty must be above 0"):
        linear_classify(torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(1, 1), 2, 0.0)
