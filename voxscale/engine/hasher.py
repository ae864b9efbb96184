"""SHA-256 of memory that two processes share, in the time that training leaves over.

On a CPU, hashing costs more of a save than all the rest: the disk takes the
bytes without help, but 2 GB need about a second of a core that training uses.
So a small process of its own hashes at the lowest priority (SCHED_IDLE), in
the moments in which ranks wait for one another, and at the usual priority as
soon as somebody waits for it. A thread will not do: one that has the
interpreter's lock and no time to run would hold up its rank. Nor can a
process without privileges raise its priority again, hence the two threads here.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import select
import signal
import subprocess
import sys
import threading

log = logging.getLogger("voxscale")

CHUNK = 1 << 20
LAZY_S = 60.0
"""How long a hash may take before it no longer gives way to training."""
NOW = b"now"


class Hasher:
    """The side of training: asks for hashes of the first bytes of some shared memory.

    Args:
        handle: File descriptor of the memory.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._urgent = False
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", __file__, str(self._handle)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=(self._handle,), bufsize=0)

    def begin(self) -> None:
        """Be ready for the next hash, which is not urgent yet."""
        self._urgent = False
        if self._process.poll() is not None:
            self._end()
            self._process = self._start()

    def digest(self, size: int) -> str | None:
        """Wait for the hash of the first `size` bytes; None if the other process is gone."""
        pipe = self._process.stdout
        assert pipe is not None
        self._say(str(size).encode())
        if self._urgent:
            self._say(NOW)
        if not select.select([pipe], [], [], LAZY_S)[0]:
            self.hurry()
        text = pipe.readline().decode().strip()
        if not text:
            log.warning("the process that hashes checkpoints has ended; its work is done without it")
        return text or None

    def hurry(self) -> None:
        """Have the hash that is being made, or comes next, no longer give way to training; any thread may call."""
        self._urgent = True
        self._say(NOW)

    def close(self) -> None:
        """End the process and give the memory back."""
        self._process.kill()
        self._end()
        os.close(self._handle)

    def _end(self) -> None:
        with self._process:  # closes the pipes and waits
            pass

    def _say(self, word: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `digest` notices
            self._process.stdin.write(word + b"\n")


class _Hash(threading.Thread):
    """One hash, made by this thread when nobody else needs the core, or to its end by whoever calls `finish`."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(daemon=True)
        self._data, self._at, self._hash = data, 0, hashlib.sha256()
        self._urgent = self._answered = False

    def run(self) -> None:
        """Hash in left-over time."""
        with contextlib.suppress(OSError):  # where it is not allowed, at the usual priority
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        while self._at < len(self._data) and not self._urgent:
            self._next()
        if self._at >= len(self._data):
            self._answer()

    def finish(self) -> None:
        """Take over what is left."""
        self._urgent = True
        self.join()
        if not self._answered:
            while self._at < len(self._data):
                self._next()
            self._answer()

    def _next(self) -> None:
        self._hash.update(self._data[self._at : self._at + CHUNK])
        self._at += CHUNK

    def _answer(self) -> None:
        self._answered = True
        os.write(1, self._hash.hexdigest().encode() + b"\n")


def main() -> None:
    """Answer each size with a hash until training is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # these are for training
        signal.signal(number, signal.SIG_IGN)
    handle = int(sys.argv[1])
    shared = memoryview(mmap.mmap(handle, os.fstat(handle).st_size, prot=mmap.PROT_READ))
    current: _Hash | None = None
    while words := os.read(0, 4096).split():
        for word in words:
            if word != NOW:
                current = _Hash(shared[: int(word)])
                current.start()
            elif current is not None:
                current.finish()
    os._exit(0)


if __name__ == "__main__":
    main()
