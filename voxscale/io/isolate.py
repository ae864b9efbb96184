"""Running a reader in a process of its own, so that a hostile file can only end that process."""

import contextlib
import ctypes
import errno
import gc
import json
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from voxscale.errors import DataError

PRELOAD = [
    "numpy",
    "nibabel",
    "pydicom",
    "pydicom.pixels.decoders",
    "SimpleITK",
    "zarr",
    "voxscale.io",
    "voxscale.io.dicom",
    "voxscale.io.rtstruct",
    "voxscale.report.thumbnail",
    "scipy.ndimage",
    "voxscale.store",
    "voxscale.kernel.loaded",
    *(f"PIL.{kind}ImagePlugin" for kind in ("Bmp", "Gif", "Jpeg", "Png", "Ppm")),  # it looks for them at the first save
]
"""Imported once by the server that every reader process is forked from."""

OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that come from a user, a scheduler or a system short of memory, not from what a file does to its reader."""
LOST = 255
"""Exit code of a process whose server ended before it could tell."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
REUSED_BYTES = 1 << 25

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)
# Starting and reaping poll all children of this process; two threads that do
# so at once can steal each other's exit codes.
_reaping = threading.Lock()


def preload(*modules: str) -> None:
    """Import more modules in the server, before it starts: those of the functions that are to be called."""
    _context.set_forkserver_preload([*PRELOAD, *modules])


def run_isolated(function: Callable[..., Any], args: Sequence[object], seconds: float, gigabytes: float) -> Any:
    """Call a function in a fresh process with limits on time and memory.

    The process has no output of its own (C libraries print file names), dies
    with its parent, and leaves no core dump.

    Args:
        function: Importable by name; returns what JSON can hold.
        args: Picklable arguments.
        seconds: Time limit.
        gigabytes: Limit on the private memory of the process.

    Raises:
        DataError: As raised by the function, or with reason `timeout`,
            `out_of_memory`, `reader_crashed` (a signal), `reader_killed` (one
            that came from outside) or `reader_failed` (any other exception, of which only the type is told).
        OSError: As raised by the function, without its file name.
    """
    ours, theirs = _context.Pipe()
    with _reaping:
        child = _context.Process(target=_child, args=(theirs, function, tuple(args), gigabytes), daemon=True)
        child.start()
    theirs.close()
    try:
        reply = json.loads(ours.recv_bytes()) if ours.poll(seconds) else {"kind": "timeout"}
    except (EOFError, ConnectionError):
        reply = {"kind": "gone"}
    finally:
        ours.close()
        with _reaping:
            child.kill()
            child.join()
            code = child.exitcode or 0
            child.close()
    return _unpack(reply, code, seconds, gigabytes)


def _unpack(reply: dict[str, Any], code: int, seconds: float, gigabytes: float) -> Any:
    """The function's result, or the error that stands for how it ended."""
    match reply["kind"]:
        case "result":
            return reply["value"]
        case "data":
            raise DataError(reply["text"], reply["reason"])
        case "os":
            raise OSError(reply["errno"], os.strerror(reply["errno"]))
        case "memory":
            raise DataError(f"reading must need at most {gigabytes:g} GB of memory", "out_of_memory")
        case "timeout":
            raise DataError(f"reading must end within {seconds:g} seconds", "timeout")
        case "failed":
            raise DataError(f"reading must succeed, not fail with {reply['text']}", "reader_failed")
        case _:
            how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
            outside = -code in OUTSIDE or code == LOST
            raise DataError(
                f"reading must end normally, not by {how}", "reader_killed" if outside else "reader_crashed"
            )


def _child(pipe: Connection, function: Callable[..., Any], args: tuple[object, ...], gigabytes: float) -> None:
    """Body of the reader process: set limits, call, send back one JSON object."""
    _keep_freed_memory()
    gc.freeze()  # else a collection would look at, and so copy, all that the server imported
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for outside in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(outside, signal.SIG_IGN)  # schedulers send these to every process; this one ends with its parent
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(silent, stream)
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()
    pipe.send_bytes(_call(function, args))


def _keep_freed_memory() -> None:
    """Let glibc use freed arrays of up to 32 MB again: a page that is fresh from the system costs a fault and zeros."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * REUSED_BYTES)


def _die_with_parent(pipe: Connection) -> None:
    """The parent never writes: the pipe only ever becomes readable when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os.kill(os.getpid(), signal.SIGKILL)


def _call(function: Callable[..., Any], args: tuple[object, ...]) -> bytes:
    try:
        return json.dumps({"kind": "result", "value": function(*args)}).encode()
    except DataError as error:
        reply = {"kind": "data", "text": str(error), "reason": error.reason}
    except MemoryError:
        reply = {"kind": "memory"}
    except OSError as error:
        reply = {"kind": "os", "errno": error.errno or errno.EIO}
    except Exception as error:
        reply = {"kind": "failed", "text": type(error).__name__}
    return json.dumps(reply).encode()
