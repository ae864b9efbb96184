"""Command line of a training stage: preset, overrides, one clear line on failure."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from voxscale.config import parse
from voxscale.errors import PreemptedError, VoxScaleError, missing_package_text, system_error_text
from voxscale.log import setup
from voxscale.signals import AGAIN, ending

T = TypeVar("T")


def guarded(work: Callable[[], object]) -> int:
    """Do something and turn what a user can mend into one line.

    Returns:
        Exit status: 0 done, 1 failed with one line that says why, `AGAIN` if a signal ended it and it saved first.
    """
    try:
        work()
    except PreemptedError as error:
        print(f"ended: {error}", file=sys.stderr)
        return AGAIN
    except VoxScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {system_error_text(error)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        missing = missing_package_text(error)
        if not missing:
            raise
        print(f"error: {missing}", file=sys.stderr)
        return 1
    return 0


def run(kind: Callable[[], type[T]], stage: Callable[[T], object], arguments: Sequence[str], prog: str) -> int:
    """Parse `[PRESET] [overrides]` and run a stage on this rank.

    Args:
        kind: Imports the class of the config, which takes seconds; signals are heard by then.
        stage: What is to be done.
        arguments: Of the command line.
        prog: The command in words, of which the last names the stage.

    Returns:
        Exit status as of `guarded`; an unknown flag exits with 2.
    """
    setup()
    preset = arguments[0] if arguments and not arguments[0].startswith("-") else None

    def work() -> None:
        with ending(prog.split()[-1]):
            stage(parse(kind(), preset, arguments[preset is not None :], f"{prog} PRESET"))

    return guarded(work)


def leave(status: int) -> NoReturn:
    """End this rank at once, with everything said written out.

    A rank that failed leaves threads of torch's and DeepSpeed's behind, whose
    destruction at the interpreter's own end can abort the process and so hide
    the status. All that must be kept (metrics, checkpoints) is on disk by then.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
