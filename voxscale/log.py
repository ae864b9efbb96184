"""One plain logger to standard error; standard output is for results."""

import logging
import sys


def setup(level: int = logging.INFO) -> None:
    """Show messages of the `voxscale` logger on standard error, once."""
    logger = logging.getLogger("voxscale")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
