"""`python -m finetune PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys
from typing import TYPE_CHECKING

from voxscale.cli import leave, run

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig


def kind() -> "type[FinetuneConfig]":
    """Imported in here, as torch comes with it: a signal meanwhile is no reason to die without a word."""
    from finetune.config import FinetuneConfig

    return FinetuneConfig


def stage(config: "FinetuneConfig") -> None:
    """Imported in here, so that a package that is not installed is one clear line."""
    from finetune.train import finetune

    finetune(config)


if __name__ == "__main__":
    leave(run(kind, stage, sys.argv[1:], "python -m finetune"))
