"""torchvision's operators are declared where its own do not load, and only there; each in a process of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from voxscale.errors import ConfigError
from voxscale.models.optional import load

ASK = """
import os, sys
import torch

def ask(state):
    if state == "there":  # as torchvision's compiled operators declare them
        theirs = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            theirs.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    else:
        try:
            import torchvision
            raise SystemExit("nothing is missing, so nothing is tested")
        except RuntimeError as error:
            assert "torchvision::nms does not exist" in str(error), error
    from voxscale.models import optional
    timm = optional.load("timm", "timm")
    optional.load("timm", "timm")
    import torchvision
    assert torchvision.__file__.startswith(sys.argv[1]), torchvision.__file__
    assert timm.is_model("convnext_atto")
    print(state, len(optional._declared), torch.ops.torchvision.nms.default._schema, flush=True)

sys.path.insert(0, sys.argv[1])
for state in ("missing", "there"):
    if os.fork() == 0:
        ask(state)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def without_operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed torchvision without its compiled files, as is one for another torch that cannot load them."""
    folder = tmp_path_factory.mktemp("packages") / "torchvision"
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    folder.mkdir()
    for path in Path(spec.origin).parent.iterdir():
        if path.suffix != ".so":
            (folder / path.name).symlink_to(path)
    return folder.parent


@pytest.mark.slow
def test_operators_are_declared_only_where_they_are_missing(without_operators: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(without_operators)], capture_output=True, text=True, check=False
    )
    schema = "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert done.stdout.splitlines() == [f"missing 1 {schema}", f"there 0 {schema}"], done.stderr[-2000:]


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(
        ConfigError, match=r"whose package is installed, not of nothing; pip install voxscale\[models\]"
    ):
        load("no_such_package_here", "nothing")
