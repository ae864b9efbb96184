"""`python -m pretrain PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys

from pretrain.config import PretrainConfig
from voxscale.cli import leave, run


def stage(config: PretrainConfig) -> None:
    """Imported in here, so that a package that is not installed is one clear line."""
    from pretrain.train import pretrain

    pretrain(config)


if __name__ == "__main__":
    leave(run(PretrainConfig, stage, sys.argv[1:], "python -m pretrain"))
