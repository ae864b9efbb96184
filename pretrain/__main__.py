"""`python -m pretrain PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys
from typing import TYPE_CHECKING

from voxscale.cli import leave, run

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig


def kind() -> "type[PretrainConfig]":
    """Imported in here, as torch comes with it: a signal meanwhile is no reason to die without a word."""
    from pretrain.config import PretrainConfig

    return PretrainConfig


def stage(config: "PretrainConfig") -> None:
    """Imported in here, so that a package that is not installed is one clear line."""
    from pretrain.train import pretrain

    pretrain(config)


if __name__ == "__main__":
    leave(run(kind, stage, sys.argv[1:], "python -m pretrain"))
