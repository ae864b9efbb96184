"""`python -m pretrain PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys

from pretrain.config import PretrainConfig
from pretrain.train import pretrain
from voxscale.cli import leave, run

if __name__ == "__main__":
    leave(run(PretrainConfig, pretrain, sys.argv[1:], "python -m pretrain"))
