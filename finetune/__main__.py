"""`python -m finetune PRESET [overrides]`: one rank, for launchers that set RANK and its kin themselves."""

import sys

from finetune.config import FinetuneConfig
from finetune.train import finetune
from voxscale.cli import run

if __name__ == "__main__":
    sys.exit(run(FinetuneConfig, finetune, sys.argv[1:], "python -m finetune"))
