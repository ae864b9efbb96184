"""Packages of the extra `models`, loaded when a backbone needs them."""

import importlib
import importlib.util
from types import ModuleType

import torch

from voxscale.errors import ConfigError

_TORCHVISION = "Tensor dets, Tensor scores, float iou_threshold"
_declared: list[torch.library.Library] = []


def load(name: str, package: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: Module, such as `timm`.
        package: The package to name if it is missing.

    Raises:
        ConfigError: If the package is not installed; says how to install it.
    """
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise ConfigError(
            f"model must be one whose package is installed, not of {package}; pip install voxscale[models]"
        )
    if package == "timm":
        declare_torchvision_operators()
    return importlib.import_module(name)


def declare_torchvision_operators() -> None:
    """Let torchvision be imported where its compiled operators do not load.

    A torchvision wheel built for CUDA cannot load them beside a torch built for
    CPUs, and then fails at import because it adds fake versions to two operators
    that nobody declared. Declaring their schemas is enough for timm, which calls
    neither. Where the operators load, nothing is done.
    """
    if _declared or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")  # whole: of an import that failed before, parts are still there
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}({_TORCHVISION}) -> Tensor")
        _declared.append(library)  # the declarations live as long as the library does
