"""The folder that shards are packed into: who may write there, and what is removed."""

import re
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data_prep.groups import GROUPS
from data_prep.part import Part
from voxscale.errors import DataError
from voxscale.files import LOCK, locked
from voxscale.folder import Folder, url_of
from voxscale.shards import index_name

PARTS = ".parts"
"""Folder of the locks of workers that pack a part each; the run that gathers them removes it."""
_SHARD = re.compile(r"shard-[0-9]{5,}\.(tar|index\.json)")
_UNFINISHED = re.compile(r"\.(shard-[0-9]{5,}|groups|manifest)\..*tmp")


def tar_name(number: int) -> str:
    """File name of a tar by its number."""
    return f"shard-{number:05d}.tar"


@contextmanager
def held(path: Path, part: Part | None) -> Generator[None]:
    """Hold a local folder against others who write the same tars; a run without a part leaves no lock of a worker."""
    if url_of(path) is not None:
        yield  # object stores have no locks; workers that write the same tar write the same bytes
        return
    with ExitStack() as stack:
        if part is not None:
            stack.enter_context(locked(path / PARTS / part.name))
        else:
            stack.enter_context(locked(path))
            stack.callback(_remove_empty, path / PARTS)
            for other in sorted((path / PARTS).glob("*")):
                stack.callback(_remove_empty, other)  # once its lock is closed: network file systems keep open files
                stack.enter_context(locked(other))
                stack.callback((other / LOCK).unlink, missing_ok=True)
            for leftover in path.glob(".*.tmp"):
                if _UNFINISHED.fullmatch(leftover.name):
                    leftover.unlink()
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # a worker has come since, or there was none
        folder.rmdir()


@contextmanager
def scratch_for(path: Path) -> Generator[Path]:
    """Local folder for unfinished tars, on the file system of a local folder."""
    if url_of(path) is None:
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def check_own(folder: Folder) -> None:
    """Refuse a folder with tars of others, such as shards that webdataset wrote: they have the same names.

    Raises:
        DataError: With reason `not_shards`.
    """
    if folder.size(GROUPS) is not None:
        return
    names = {name for name in folder.names() if _SHARD.fullmatch(name)}
    if any(index_name(name) not in names for name in names):
        raise DataError(
            f"{folder.name} must be an empty folder or one that was packed into, not one with other tars", "not_shards"
        )


def clear(folder: Folder, count: int) -> None:
    """Remove tars that an earlier config made: whoever reads all tars of the folder would read them too.

    Args:
        folder: Of the shards.
        count: How many tars there should be.
    """
    named = {name for number in range(count) for name in (tar_name(number), index_name(tar_name(number)))}
    for name in list(folder.names()):
        if _SHARD.fullmatch(name) and name not in named:
            folder.remove(name)
