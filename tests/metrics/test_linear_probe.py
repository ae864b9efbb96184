import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from voxscale.errors import DataError
from voxscale.metrics.linear_probe import linear_classify


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_classes_are_those_of_scikit_learn(shrinkage):
    draw = np.random.default_rng(0)
    examples, queries = draw.normal(size=(90, 6)) * [1, 2, 3, 1, 1, 1] + 3, draw.normal(size=(400, 6)) + 3
    labels = (examples @ draw.normal(size=(6, 3)) + draw.normal(size=(90, 3))).argmax(1)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(examples, labels)
    found = linear_classify(*(torch.from_numpy(a) for a in (examples, labels, queries)), 3, shrinkage)
    assert found.tolist() == fitted.predict(queries).tolist()


def test_a_class_between_two_others_is_named():
    examples = torch.arange(30.0)[:, None]
    labels = torch.arange(30) // 10
    assert linear_classify(examples, labels, examples, 3, 0.01).tolist() == labels.tolist()


def test_a_feature_that_never_varies_and_a_class_that_never_appears_do_no_harm():
    examples = torch.tensor([[0.0, 5.0], [1.0, 5.0], [0.1, 5.0], [1.1, 5.0]])
    found = linear_classify(examples, torch.tensor([0, 2, 0, 2]), examples, 3, 0.1)
    assert found.tolist() == [0, 2, 0, 2]
    assert linear_classify(torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(1, 3), 2, 0.1).tolist() == [0]


@pytest.mark.parametrize("shrinkage", [0.0, 1.5])
def test_no_shrinkage_is_refused(shrinkage):
    with pytest.raises(DataError, match="shrinkage must be above 0 and at most 1"):
        linear_classify(torch.zeros(2, 1), torch.tensor([0, 1]), torch.zeros(1, 1), 2, shrinkage)
