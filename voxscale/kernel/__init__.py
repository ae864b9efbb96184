"""The compiled part of the store's reader and of ingest: built once per machine with g++, which DeepSpeed needs too.

Without a compiler the same chunks are decoded in Python, several times slower.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger("voxscale")

HERE = Path(__file__).parent
SOURCES = tuple(
    HERE / name for name in ("chunks.cpp", "filters.cpp", "matching.cpp", "fusion.cpp", "resample.cpp", "greys.cpp")
)
PARTS = (*SOURCES, *(HERE / name for name in ("bits.h", "unbit.h", "crc32c.h", "wide.h")))
OFF = "VOXSCALE_NO_KERNEL"
"""Environment variable that switches the compiled reader off."""


def _flags() -> list[str]:
    """Instructions that every machine of the last fifteen years has; a cluster's nodes may differ in newer ones."""
    machine = ["-msse4.2"] if platform.machine() in ("x86_64", "AMD64") else []
    # Products and sums are rounded one by one, as torch and numpy do.
    return ["-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", *machine]


def _blosc2() -> tuple[Path, Path] | None:
    """Folders of the headers and the shared library that come with the `blosc2` package."""
    found = find_spec("blosc2")
    if found is None or found.origin is None:
        return None
    root = Path(found.origin).parent
    return (root / "include", root / "lib") if (root / "include" / "blosc2.h").is_file() else None


def cache() -> Path:
    """Folder of compiled libraries, one per source, compiler flags and `blosc2` build."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "voxscale"


def build() -> Path | None:
    """Compile the library unless it is there; None if this machine cannot."""
    parts, compiler = _blosc2(), shutil.which(os.environ.get("CXX", "g++"))
    if parts is None:
        return None
    include, lib = parts
    told = f"{''.join(part.read_text() for part in PARTS)}{_flags()}{lib}{platform.machine()}{sys.platform}"
    target = cache() / f"chunks-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    if compiler is None:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    command = [
        compiler,
        "-O3",
        "-std=c++17",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        *_flags(),
        *map(str, SOURCES),
        f"-I{include}",
    ]
    command += [f"-L{lib}", "-lblosc2", f"-Wl,-rpath,{lib}", "-o", str(beside)]
    try:
        subprocess.run(command, check=True, capture_output=True)
        beside.replace(target)
    except (OSError, subprocess.CalledProcessError):
        return None
    finally:
        beside.unlink(missing_ok=True)
    return target


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled reader, or None where it is switched off or cannot be built."""
    if os.environ.get(OFF):
        return None
    try:
        path = build()
        found = None if path is None else ctypes.CDLL(str(path))
    except OSError:
        found = None
    if found is None:
        log.warning("store: chunks are decoded in Python; install g++ and run `python -m voxscale.kernel` for speed")
        return None
    pointer, whole, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.read_chunks.argtypes = [
        pointer, pointer, whole, pointer, ctypes.c_char, flag, flag, pointer, whole
    ]  # fmt: skip
    found.read_chunks.restype = whole
    found.to_float.argtypes = [pointer, pointer, pointer, ctypes.c_char, flag, pointer]
    found.to_float.restype = whole
    found.limit.argtypes, found.limit.restype = [flag], flag
    found.start()
    return found
