"""A loading process: makes batches and hands them over as anonymous memory, without files in /dev/shm."""

import mmap
import os
import signal
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from voxscale.batch import Batch, collate
from voxscale.errors import DataError, StorageError, VoxScaleError
from voxscale.messages import receive, send
from voxscale.signals import SIGNALS
from voxscale.stream.interface import PatchStream

ALIGN = 64
"""Bytes to which every tensor of a batch is aligned."""

_TENSORS = ("voxels", "label", "sizes", "matrix", "scale", "removed", "mm")
_NUMBERS = ("seeds", "indices", "scans")


def work(stream: PatchStream, pipe: socket.socket, life: Connection) -> None:
    """Body of a worker: answers tasks until its parent is gone.

    Args:
        stream: Where samples come from.
        pipe: Tasks come in, `at`, `batch` and `error` messages go out, a batch with its memory.
        life: Readable only when the parent is gone.
    """
    threading.Thread(target=_die_with_parent, args=(life,), daemon=True).start()
    for number in (signal.SIGINT, *SIGNALS):  # the parent decides when to end, see `voxscale.deaf`
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    send(pipe, {"kind": "ready"})
    while task := _next(pipe):
        try:
            _answer(stream, pipe, task)
        except (BrokenPipeError, ConnectionError):
            return
        except VoxScaleError as error:
            reason = error.reason if isinstance(error, DataError) else "bad_data"
            reason = "unreachable" if isinstance(error, StorageError) else reason
            send(pipe, {"kind": "error", "batch": task["batch"], "reason": reason, "text": str(error)})
        except Exception as error:
            text = f"{type(error).__name__}: {_first_line(error)}"
            send(pipe, {"kind": "error", "batch": task["batch"], "reason": "loader_failed", "text": text})


def _next(pipe: socket.socket) -> dict[str, Any] | None:
    """The next task; none once the parent is gone, which may tell before its own end is noticed."""
    try:
        return receive(pipe)[0]
    except ConnectionError:
        return None


def _die_with_parent(life: Connection) -> None:
    try:
        life.recv_bytes()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGKILL)


def _first_line(error: Exception) -> str:
    """What an unexpected exception says, if it cannot hold a path."""
    text = str(error).partition("\n")[0][:200]
    return "details are withheld" if "/" in text or isinstance(error, OSError) else text


def _answer(stream: PatchStream, pipe: socket.socket, task: dict[str, Any]) -> None:
    """Make one batch."""
    patches, bad = [], []
    for index, spare in task["samples"]:
        send(pipe, {"kind": "at", "index": index})
        found, replaced = stream.sample(index, spare)
        patches += found
        bad += [(index, volume, reason) for volume, reason in replaced]
    memory, told = pack(collate(patches))
    try:
        send(pipe, {"kind": "batch", "batch": task["batch"], "bad": bad, **told}, memory)
    finally:
        os.close(memory)


def pack(batch: Batch) -> tuple[int, dict[str, Any]]:
    """Put a batch into anonymous memory.

    Returns:
        File descriptor of the memory, and what `unpack` needs to know.
    """
    parts: dict[str, list[Any]] = {}
    end = 0
    arrays = {name: getattr(batch, name).numpy() for name in _TENSORS if getattr(batch, name) is not None}
    for name, array in arrays.items():
        start = -(-end // ALIGN) * ALIGN
        end = start + array.nbytes
        parts[name] = [start, list(array.shape), array.dtype.name]
    memory = os.memfd_create("batch", os.MFD_CLOEXEC)
    os.ftruncate(memory, max(end, 1))
    with mmap.mmap(memory, max(end, 1)) as room:
        for name, array in arrays.items():
            start = parts[name][0]
            target = np.frombuffer(room, dtype=array.dtype, count=array.size, offset=start).reshape(array.shape)
            target[...] = array
            del target  # else the memory cannot be unmapped
    return memory, {"size": max(end, 1), "parts": parts, **{name: getattr(batch, name) for name in _NUMBERS}}


def unpack(memory: int, told: dict[str, Any]) -> Batch:
    """The batch in a piece of anonymous memory, not copied; the descriptor is closed."""
    try:
        room = mmap.mmap(memory, told["size"], access=mmap.ACCESS_COPY)
    finally:
        os.close(memory)
    tensors: dict[str, Any] = dict.fromkeys(_TENSORS)
    for name, (start, shape, kind) in told["parts"].items():
        flat = np.frombuffer(room, dtype=kind, count=int(np.prod(shape)), offset=start)
        tensors[name] = torch.from_numpy(flat.reshape(shape))
    seeds, indices, scans = (tuple(told[name]) for name in _NUMBERS)
    return Batch(**tensors, seeds=seeds, indices=indices, scans=scans)
