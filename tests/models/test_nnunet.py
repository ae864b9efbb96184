import pytest

from configs.models import plainconv, resenc_l
from voxscale.models.build import adapt, build

STRIDES = ((2, 2, 2),) * 5


@pytest.mark.parametrize(("preset", "published"), [(resenc_l, 102_432_685), (plainconv, 31_278_509)])
def test_weights_are_as_many_as_nnu_net_counts_for_105_classes(preset, published: int) -> None:
    config = adapt(preset(), in_channels=1, classes=105, heads=5, strides=STRIDES)
    assert sum(p.numel() for p in build(config, "meta").parameters()) == published
