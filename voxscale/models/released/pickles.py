"""Torch files from elsewhere, read without running anything that they ask for.

A pickle is a program that may call anything it names. Here it meets torch's
restricted reader, whose list of what may be called holds tensors, storages and
plain containers. Names of classes that old files hold besides (numpy scalars,
`argparse.Namespace`, classes of training code) stand for `Inert`, an object
that takes any arguments and does nothing; they are never imported. A file that
names anything else of Python, such as `os.system`, is refused before it is read.
"""

import pickletools
import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from voxscale.errors import CheckpointError

HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "datetime.datetime",
        "pathlib.Path",
        "pathlib.PosixPath",
        "types.SimpleNamespace",
        "builtins.dict",
        "builtins.list",
        "builtins.object",
        "builtins.float",
        "builtins.int",
        "copyreg._reconstructor",
    }
)
"""What a file may name of Python's own modules; it stands for `Inert`."""

CODECS = frozenset({"_codecs.encode", "builtins.bytearray", "builtins.set", "builtins.complex"})
PYTHON = frozenset(sys.stdlib_module_names) | {"builtins", "__main__"}
LEGACY_PICKLES = 5
"""Pickles in a row in files of torch before 1.6: magic number, protocol, system, content, keys of storages."""


class Inert:
    """Stands for an object of a class that is not wanted; takes everything and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":  # noqa: ARG004
        """Ignore what the file gives."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a file holds.

    Attributes:
        content: Tensors, numbers, texts and containers of them; everything else is an `Inert`.
        inert: Names of the classes and functions that stand as `Inert`.
    """

    content: Any
    inert: tuple[str, ...]


def read_pickled(path: Path) -> Pickled:
    """Read a file written by `torch.save`; tensors come to the CPU.

    Args:
        path: Zip format, or the one before torch 1.6. Of a zip the tensors are mapped, so
            those that are not used, such as momentum, cost no memory.

    Raises:
        CheckpointError: If the file cannot be read, is of neither format, or names something
            that is not allowed. Nothing that it asks for has been run then.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        names = sorted(set(_zip_names(path) if zipped else _legacy_names(path)))
        inert = tuple(name for name in names if not _known(name))
        bad = [name for name in inert if not _may_be_inert(name)]
        if bad:
            raise CheckpointError(
                "released.weights must be a file of tensors and plain values, not one that asks for "
                f"{_printable(bad[0])}"
            )
        with _allowed(inert):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise CheckpointError(f"released.weights must be a file that can be read, not {error.strerror}") from None
    except CheckpointError:
        raise
    except Exception as error:
        # Damaged and hostile files fail in many ways; torch's words may hold the path.
        raise CheckpointError(
            "released.weights must be an undamaged file written by torch.save, not one that ends in "
            f"{type(error).__name__}"
        ) from None
    return Pickled(content, inert)


@contextmanager
def _allowed(inert: Sequence[str]) -> Generator[None]:
    """Let torch's reader build `Inert` for these names, and nothing that other packages have allowed."""
    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([(Inert, name) for name in inert])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _known(name: str) -> bool:
    """Whether torch's reader itself decides about a name, on torch's own or containers."""
    return name in CODECS or name.split(".")[0] == "torch" or name in {"collections.OrderedDict", "collections.Counter"}


def _may_be_inert(name: str) -> bool:
    return name in HARMLESS or name.split(".")[0] not in PYTHON


def _zip_names(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith("data.pkl"):
                with archive.open(member) as file:
                    yield from _names(file)


def _legacy_names(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            yield from _names(file)


def _names(file: IO[bytes]) -> Iterator[str]:
    """Every name that the next pickle asks for; pickles that build names at run time are refused."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield _today(*cast(str, argument).split(" ", 1))
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise CheckpointError(
                f"released.weights must be a pickle of protocol 2, as torch.save writes it, not one with {opcode.name}"
            )


def _today(module: str, name: str) -> str:
    """Protocol 2 names modules as Python 2 did, such as `commands` for `subprocess`; torch's reader undoes it too."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _printable(name: str) -> str:
    return re.sub(r"[^\w.]", "?", name)[:80]
