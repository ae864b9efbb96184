"""`python -m finetune PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys

from finetune.config import FinetuneConfig
from voxscale.cli import leave, run


def stage(config: FinetuneConfig) -> None:
    """Imported in here, so that a package that is not installed is one clear line."""
    from finetune.train import finetune

    finetune(config)


if __name__ == "__main__":
    leave(run(FinetuneConfig, stage, sys.argv[1:], "python -m finetune"))
