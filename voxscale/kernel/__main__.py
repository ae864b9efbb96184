"""Compile the store's reader, once, at installation: `python -m voxscale.kernel`."""

import sys

from voxscale.kernel import library

if __name__ == "__main__":
    if library() is None:
        sys.exit("error: the store's reader must compile; install g++ (`apt-get install g++` on Debian or Ubuntu)")
