"""Running readers in processes of their own, so that a hostile file can only end one of these."""

import contextlib
import ctypes
import errno
import gc
import itertools
import json
import multiprocessing
import os
import queue
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
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

CALLS = 256
SPARE_BYTES = 1 << 28
"""Calls, and growth in bytes of what it keeps between calls, after which a process is replaced by a fresh one."""
ANSWERS = ("result", "data", "os")
"""Kinds of answers after which a process may be called again."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""

_Call = tuple[Callable[..., Any], tuple[object, ...]]
_GONE: dict[str, Any] = {"kind": "gone"}

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
    reader, reply = _Reader(gigabytes), _GONE
    try:
        reply = reader.ask(function, args, seconds)
    finally:
        code = reader.end()
    return _unpack(reply, code, seconds, gigabytes)


class Readers:
    """Processes that are used for many calls: a fresh one costs as much time as a scan of 1 MB.

    No call is charged for what an earlier one left behind: where a process
    that has answered calls before crashes, fails, or keeps not to its limits,
    it ends, and the call is made again in a fresh process, whose end counts.
    There are as many processes as threads ask at once, one call in each.
    """

    def __init__(self) -> None:
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()

    def call(self, function: Callable[..., Any], args: Sequence[object], seconds: float, gigabytes: float) -> Any:
        """Call a function as `run_isolated` does, in a process that may have had calls before."""
        with self._lock:
            known = next((reader for reader in self._idle if reader.gigabytes == gigabytes), None)
            if known is not None:
                self._idle.remove(known)
        reader, reply, code = known or _Reader(gigabytes), _GONE, 0
        try:
            reply = reader.ask(function, args, seconds)
        finally:
            well = reply["kind"] in ANSWERS
            if well and not reader.spent:
                with self._lock:
                    self._idle.append(reader)
            else:
                code = reader.end()
        if well or known is None:
            return _unpack(reply, code, seconds, gigabytes)
        return run_isolated(function, args, seconds, gigabytes)

    def close(self) -> None:
        """End the processes that wait for calls."""
        with self._lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.end()


class _Reader:
    """One process, seen from its parent; `spent` once it should have no more calls."""

    def __init__(self, gigabytes: float) -> None:
        self.gigabytes, self.spent = gigabytes, False
        self._pipe, theirs = _context.Pipe()
        with _reaping:
            self._child = _context.Process(target=_work, args=(theirs, gigabytes), daemon=True)
            self._child.start()
        theirs.close()

    def ask(self, function: Callable[..., Any], args: Sequence[object], seconds: float) -> dict[str, Any]:
        """One call; returns the process's answer, or that it is late or gone."""
        try:
            self._pipe.send((function, tuple(args)))
            if not self._pipe.poll(seconds):
                return {"kind": "timeout"}
            answer = self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return _GONE
        self.spent = bool(answer[0])
        return json.loads(answer[1:])

    def end(self) -> int:
        """End the process; returns its exit code."""
        self._pipe.close()
        with _reaping:
            self._child.kill()
            self._child.join()
            code = self._child.exitcode or 0
            self._child.close()
        return code


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


def _work(pipe: Connection, gigabytes: float) -> None:
    """Body of the reader process: set limits; then call what is asked for, and send back one JSON object for each."""
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
    calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, calls), daemon=True).start()
    before = _resident()
    for number in itertools.count(1):
        answer = _call(*calls.get())
        spent = number >= CALLS or _resident() - before > SPARE_BYTES
        pipe.send_bytes(bytes([spent]) + answer)


def _listen(pipe: Connection, calls: "queue.SimpleQueue[_Call]") -> None:
    """Take calls from the parent; end as soon as it is gone, even in the middle of a call."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            calls.put(pipe.recv())
    os.kill(os.getpid(), signal.SIGKILL)


def _resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _keep_freed_memory() -> None:
    """Let glibc use freed arrays of up to 32 MB again: a page that is fresh from the system costs a fault and zeros."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * REUSED_BYTES)


def _call(function: Callable[..., Any], args: Sequence[object]) -> bytes:
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
