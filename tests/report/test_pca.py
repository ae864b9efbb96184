import numpy as np
from sklearn.decomposition import PCA

from voxscale.report.pca import pca_colours


def test_colours_are_the_components_that_scikit_learn_finds():
    draw = np.random.default_rng(0)
    features = [
        draw.gamma(1.0, size=(6, 4, 3, 2)) * np.array([5, 4, 3, 1, 1, 1])[:, None, None, None] for _ in range(2)
    ]
    features = [f + 3 * f[:1] for f in features]
    found = np.concatenate([c.reshape(-1, 3) for c in pca_colours(features)]).astype(float)
    flat = np.concatenate([f.reshape(6, -1).T for f in features])
    true = PCA(3).fit_transform((flat - flat.mean(0)) / flat.std(0))
    for axis in range(3):
        inner = (found[:, axis] > 0) & (found[:, axis] < 255)
        assert abs(np.corrcoef(found[inner, axis], true[inner, axis])[0, 1]) > 0.999


def test_like_features_have_like_colours_and_constant_ones_do_no_harm():
    half = np.zeros((5, 4, 4, 4))
    half[0, :2] = 1.0
    (colours,) = pca_colours([half])
    assert colours.dtype == np.uint8
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 2
    assert pca_colours([np.ones((2, 2, 2, 2))])[0].shape == (2, 2, 2, 3)
