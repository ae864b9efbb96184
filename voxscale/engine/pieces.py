"""Flat slices of named tensors: what a rank writes into a checkpoint, and whole tensors put together from them.

A file of slices is a safetensors file. Its tensors are called `kind/name`,
such as `weights/0.bias`; its metadata say which slice of which whole each is.
"""

import errno
import fcntl
import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxscale.engine.hasher import Hasher
from voxscale.errors import CheckpointError
from voxscale.models.turned import turn, turn_back, turned_shape, weight_shape

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64"}
BLOCK = 4096
"""Bytes to which writes past the page cache are rounded."""
CHUNK = 64 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A rank's slice of one tensor.

    Attributes:
        kind: What it is: `weights`, a moment such as `exp_avg`, `ema`.
        name: Parameter it belongs to.
        shape: Of the whole tensor.
        start: Where the slice begins in the flattened whole.
        value: The slice, flat, where training holds it.
        turned: Whether the flattened whole is that of a turned parameter (`voxscale.models.turned`).
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    value: Tensor
    turned: bool = False

    @property
    def key(self) -> str:
        """Name of the slice in a file."""
        return f"{self.kind}/{self.name}"

    def place(self) -> dict[str, Any]:
        """What a file says of the slice; of a turned one the shape in which it is a flat range."""
        if not self.turned:
            return {"start": self.start, "shape": list(self.shape)}
        return {"start": self.start, "shape": list(turned_shape(self.shape)), "turned": True}


def header(tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file whose tensors follow in this order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


class Image:
    """The bytes of one file of slices in host memory, filled anew for each save.

    Where there is a GPU, the memory is page-locked and a thread hashes it; the
    cores have time. Elsewhere steps need the cores, so a process shares the
    memory that hashes it when they leave some over.

    Attributes:
        size: Bytes of the file.
    """

    def __init__(self) -> None:
        self._head = b""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._hasher: Hasher | None = None
        self.size = 0

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Copy the slices; from a GPU the copies are only queued on its current stream."""
        ordered = sorted(pieces, key=lambda piece: (-piece.value.element_size(), piece.key))  # keeps each aligned
        index = {piece.key: piece.place() for piece in ordered}
        head = header([(p.key, p.value.dtype, [p.value.numel()]) for p in ordered], {"slices": json.dumps(index)})
        if head != self._head:
            self._allocate(head, sum(piece.value.nbytes for piece in ordered))
        elif self._hasher is not None:
            self._hasher.begin()
        at = len(head)
        for piece in ordered:
            room = self._bytes[at : at + piece.value.nbytes].view(piece.value.dtype)
            room.copy_(piece.value.detach(), non_blocking=True)
            at += piece.value.nbytes

    def _allocate(self, head: bytes, data: int) -> None:
        self._head, self.size = head, len(head) + data
        room = -(-self.size // BLOCK) * BLOCK
        if torch.cuda.is_available():
            self._bytes = torch.empty(room, dtype=torch.uint8, pin_memory=True)
        else:
            self.close()
            handle = os.memfd_create("checkpoint")
            os.ftruncate(handle, room)
            block = mmap.mmap(handle, room)  # begins at a page, which writing past the page cache asks for
            block.madvise(mmap.MADV_HUGEPAGE)
            self._bytes = torch.frombuffer(block, dtype=torch.uint8)
            self._hasher = Hasher(handle)
        self._bytes[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)

    def write(self, path: Path) -> dict[str, Any]:
        """Write and flush the file.

        Returns:
            Its `bytes` and `sha256`, taken from memory: what was meant to be written.

        Raises:
            OSError: If the disk is full, the folder read-only and the like.
        """
        data = memoryview(self._bytes.numpy())  # pyright: ignore[reportArgumentType]  # numpy arrays are buffers
        with ThreadPoolExecutor(1) as other:
            digest = other.submit(self._hash, data[: self.size])
            try:
                write_past_cache(path, data, self.size)
            except OSError:
                self.hurry()  # whoever hears of this should not wait for a hash
                raise
            return {"bytes": self.size, "sha256": digest.result()}

    def _hash(self, data: memoryview) -> str:
        found = self._hasher.digest(self.size) if self._hasher is not None else None
        return found or hashlib.sha256(data).hexdigest()

    def hurry(self) -> None:
        """Have `write` no longer give way to training, as somebody waits for it; any thread may call."""
        if self._hasher is not None:
            self._hasher.hurry()

    def close(self) -> None:
        """End the process that hashes, once nothing is being written."""
        if self._hasher is not None:
            self._hasher.close()
            self._hasher = None


def write_past_cache(path: Path, data: memoryview, size: int) -> None:
    """Write and flush the first `size` bytes of page-aligned memory.

    The page cache is left out where the file system can do so: the copy into
    it would take CPU time from training, and memory from the loader.
    """
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    try:
        handle = os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError:  # tmpfs and some network file systems refuse; a real trouble comes again in the next line
        handle = os.open(path, flags, 0o666)
    try:
        at = 0
        while at < len(data):
            try:
                at += os.write(handle, data[at : at + CHUNK])
                aligned = at % BLOCK == 0
            except OSError as error:
                aligned = False
                if error.errno != errno.EINVAL or not _through_cache(handle):
                    raise
            if not aligned:  # after a short write, as on a disk that is nearly full
                _through_cache(handle)
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def _through_cache(handle: int) -> bool:
    """Have later writes go through the page cache; returns whether they did not until now."""
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)


class Stored(Mapping[str, Tensor]):
    """Tensors of one kind in files of slices: whole ones by name, or parts; read from disk when asked for.

    Raises:
        CheckpointError: If slices are missing, or a file is not one of slices.
    """

    def __init__(self, files: Iterable[Path], kind: str) -> None:
        self._kind = kind
        self._slices: dict[str, list[tuple[int, int, Any]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._turned: dict[str, bool] = {}
        for path in sorted(files):
            self._add(path)
        for name, slices in self._slices.items():
            slices.sort(key=lambda s: s[:2])
            ends = [0, *(stop for _, stop, _ in slices)]
            if [start for start, _, _ in slices] != ends[:-1] or ends[-1] != math.prod(self.shapes[name]):
                raise CheckpointError(f"checkpoint must hold {kind} {name} without gaps; it misses a file or slice")

    def _add(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            index = json.loads((file.metadata() or {})["slices"])
        except (OSError, SafetensorError, KeyError, ValueError):
            raise CheckpointError(f"{path.name} must be a readable file of slices; it is damaged") from None
        for key in file.keys():  # noqa: SIM118  # not a mapping
            kind, _, name = key.partition("/")
            if kind == self._kind:
                start = int(index[key]["start"])
                piece = file.get_slice(key)
                self._slices.setdefault(name, []).append((start, start + int(piece.get_shape()[0]), piece))
                turned, shape = bool(index[key].get("turned")), tuple(index[key]["shape"])
                if self._turned.setdefault(name, turned) != turned:
                    raise CheckpointError(
                        f"checkpoint must hold {kind} {name} in one order; its files are of several runs"
                    )
                self.shapes[name] = weight_shape(shape) if turned else shape

    def part(self, name: str, start: int, stop: int, turned: bool = False) -> Tensor:
        """A flat slice of one tensor; only it is read, or the rows that it lies in.

        Args:
            name: Of the tensor.
            start: First element.
            stop: End.
            turned: Whether the slice is one of the flattened turned tensor, whatever lies in the files.
        """
        if turned == self._turned[name] or start >= stop:
            return self._part(name, start, stop)
        # The first axis is the first in both orders, so a row holds the same elements in both.
        shape = self.shapes[name]
        row = math.prod(shape[1:])
        first, last = start // row, -(-stop // row)
        rows = self._part(name, first * row, last * row)
        if turned:
            rows = turn(rows.reshape(last - first, *shape[1:]))
        else:
            rows = turn_back(rows.reshape(last - first, *turned_shape(shape)[1:]))
        return rows.flatten()[start - first * row : stop - first * row]

    def _part(self, name: str, start: int, stop: int) -> Tensor:
        """A flat slice in the order of the files."""
        parts = [
            piece[max(start, a) - a : min(stop, b) - a] for a, b, piece in self._slices[name] if a < stop and b > start
        ]
        return torch.cat(parts) if parts else torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        """One whole tensor."""
        shape = self.shapes[name]
        return self.part(name, 0, math.prod(shape)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)


def own_buffers(values: Stored, rank: int) -> dict[str, Tensor]:
    """A rank's buffers out of a checkpoint; a rank that it does not know begins with those of rank 0."""
    start = f"rank{rank}/" if any(key.startswith(f"rank{rank}/") for key in values) else "rank0/"
    return {key.removeprefix(start): values[key] for key in values if key.startswith(start)}
