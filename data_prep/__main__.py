"""`python -m data_prep {phantom,ingest,audit,report,plan,pack,verify} ...`: one entry for data preparation."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from voxscale.errors import VoxScaleError, system_error_text
from voxscale.parent import VARIABLE, end_with

STAGES = ("phantom", "ingest", "audit", "report", "plan", "pack", "verify")
"""Each is a module with a `main`; only the one that runs is imported."""
USAGE = f"usage: python -m data_prep {{{','.join(STAGES)}}} [--help] ..."


def main(args: Sequence[str]) -> int:
    """Run one stage.

    Returns:
        0 if it succeeded, 1 if it failed, 2 if the command is wrong or nothing was accepted, 3 if an audit
        found shared scans. `verify` returns 1 if anything is damaged.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    log = logging.getLogger("voxscale")
    end_with(os.environ.get(VARIABLE, ""))
    stage, rest = (args[0], args[1:]) if args else ("", [])
    if stage not in STAGES:
        log.error(USAGE)
        return 0 if stage in ("-h", "--help") else 2
    try:
        return int(importlib.import_module(f"data_prep.{stage}").main(rest))
    except VoxScaleError as error:
        log.error("error: %s", error)
        return 1
    except OSError as error:
        log.error("error: %s", system_error_text(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
