"""`python -m finetune PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys

from finetune.config import FinetuneConfig
from finetune.train import finetune
from voxscale.cli import leave, run

if __name__ == "__main__":
    leave(run(FinetuneConfig, finetune, sys.argv[1:], "python -m finetune"))
