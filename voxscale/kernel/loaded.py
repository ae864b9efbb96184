"""Loads the compiled library where it is imported: in a server, before processes that need it are forked."""

from voxscale.kernel.filters import load

load()
