"""Python processes forked from one that has imported torch and DeepSpeed, which takes each of them some seconds else.

`start` gives what `subprocess.Popen([sys.executable, *arguments])` would: another process with its own environment,
folder, output and exit status, in which nothing has run yet but imports. So are the processes that it starts itself,
as its `sys.executable` is a script that asks for them; a signal to that script goes to its process, SIGKILL too.
Where there is a GPU it gives just what `subprocess` gives, as what CUDA has begun must not be forked.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, cast

ROOT = Path(__file__).resolve().parents[1]
PRELOAD = ["launch.chain", "launch.study", "launch.parts", "submitit.core._submit", "pretrain.train", "finetune.train"]
PRELOAD += [f"data_prep.{stage}" for stage in ("ingest", "plan", "pack")]
LAZY = ["torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer"]
"""What the first optimizer and the first engine import."""
ASK = """#!{python} -IS
import json, os, signal, socket, sys

words = sys.argv[1:]
if not {{"submitit.core._submit", "data_prep"}} & {{*words[:3]}}:
    os.execv("{python}", ["{python}", *words])
asked = socket.socket(socket.AF_UNIX)
asked.connect("\\0{address}")
request = json.dumps({{"words": words, "env": dict(os.environ), "cwd": os.getcwd(), "python": __file__}}).encode()
socket.send_fds(asked, [len(request).to_bytes(8, "big")], [0, 1, 2])
asked.sendall(request)
answers = asked.makefile("r")
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""
"""Stands in for Python in a process of ours; what need not be warm, or has to keep its number, is Python itself."""
_lock = threading.Lock()
_servers: list[tuple[str, str]] = []


class Process(Protocol):
    """As far as tests need it, that of `subprocess`."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


def start(arguments: Sequence[object], env: Mapping[str, str], out: Any, err: Any, cwd: Path = ROOT) -> Process:
    """Start Python on a script or, behind `-m`, on a module.

    Args:
        arguments: Of the interpreter.
        env: The whole environment.
        out: Open file for standard output.
        err: The same for standard error.
        cwd: Folder to work in.
    """
    import torch

    words = [str(argument) for argument in arguments]
    if torch.cuda.is_available():
        return subprocess.Popen([sys.executable, *words], env=env, stdout=out, stderr=err, cwd=cwd)
    return Forked(words, env, out.fileno(), err.fileno(), cwd)


def run(
    arguments: Sequence[object], env: Mapping[str, str] | None = None, timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run to the end, as `subprocess.run` does with text captured; with this process's environment by default."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        process = start(arguments, os.environ if env is None else env, out, err)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([*map(str, arguments)], status, out.read(), err.read())


class Forked:
    """A forked process, which ends when this object or the process that holds it does."""

    def __init__(self, words: list[str], env: Mapping[str, str], out: int, err: int, cwd: Path) -> None:
        address, python = _server()
        request = json.dumps({"words": words, "env": dict(env), "cwd": str(cwd), "python": python}).encode()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        with open(os.devnull) as none:
            socket.send_fds(self._socket, [len(request).to_bytes(8)], [none.fileno(), out, err])
        self._socket.sendall(request)
        self._answers = self._socket.makefile("r")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None as long as it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit status; raises `subprocess.TimeoutExpired` if it still runs then."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("python", timeout or 0)
            answer = self._answers.readline()
            assert answer, "the server that forks processes must answer, but it has ended"
            self.returncode = int(answer)
            self._answers.close()
            self._socket.close()
        return self.returncode

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _server() -> tuple[str, str]:
    """Address of this process's server, which is started with the first call and ends with this process; `ASK`."""
    with _lock:
        if not _servers:
            name = f"warm-python-{secrets.token_hex(8)}"
            folder = Path(tempfile.mkdtemp(prefix="warm-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            asking = folder / "python"
            asking.write_text(ASK.format(python=sys.executable, address=name))
            asking.chmod(0o755)
            # One thread: only such a process may be forked at any moment.
            env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            command = [sys.executable, __file__, name]
            server = subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert server.stdin is not None
            assert server.stdout is not None
            atexit.register(server.wait)
            atexit.register(server.stdin.close)
            assert server.stdout.readline() == b"ready\n", "the server must start; it says above why it did not"
            _servers.append((f"\0{name}", str(asking)))
        return _servers[0]


def _serve(address: str) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request until standard input ends; returns in each child, with its request and its files."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{address}")
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    held: dict[int, tuple[int, socket.socket]] = {}  # by a file that can be read when its process has ended
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                for pid, _ in held.values():
                    _end(pid)
                os._exit(0)
            elif key.fd in held:
                pid, connection = held.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(KeyError, ValueError):
                    selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                connection.close()
            elif key.fileobj is not listener:  # whoever waited for it has gone
                selector.unregister(key.fileobj)
                for pid, connection in held.values():
                    if connection is key.fileobj:
                        _end(pid)
            else:
                connection, _ = listener.accept()
                if (asked := _request(connection)) is None:
                    continue
                request, files = asked
                if (pid := os.fork()) == 0:
                    selector.close()
                    listener.close()
                    for _, other in [*held.values(), (0, connection)]:
                        other.close()
                    for file in held:
                        os.close(file)
                    return request, files
                for file in files:
                    os.close(file)
                with contextlib.suppress(OSError):  # whoever has gone is noticed below
                    connection.sendall(b"%d\n" % pid)
                ended = os.pidfd_open(pid)
                held[ended] = pid, connection
                selector.register(ended, selectors.EVENT_READ)
                selector.register(connection, selectors.EVENT_READ)


def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """What a connection asks for; None if whoever asks was killed before all of it was said."""
    files: list[int] = []
    try:
        connection.settimeout(10)
        size, files, _, _ = socket.recv_fds(connection, 8, 3)
        request = json.loads(connection.recv(int.from_bytes(size), socket.MSG_WAITALL))
        assert len(files) == 3
        connection.settimeout(None)
    except (OSError, ValueError, AssertionError):
        for file in files:
            os.close(file)
        connection.close()
        return None
    return request, files


def _end(pid: int) -> None:
    """SIGKILL for a process and all of its group, which it leads once it has begun."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def _become(request: dict[str, Any], files: list[int], path: list[str]) -> None:
    """Be the process that was asked for."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setsid()  # so that it can be killed with all that it starts
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.executable = request["python"]
    random.seed()
    _settle()
    words = list(request["words"])
    if words[0] == "-u":
        cast(TextIOWrapper, sys.stdout).reconfigure(write_through=True)
        words.pop(0)
    module = words[0] == "-m"
    sys.argv = words[module:]
    own = request["cwd"] if module else str(Path(words[0]).resolve().parent)
    sys.path[:] = [own, *filter(None, os.environ.get("PYTHONPATH", "").split(":")), *path]
    status: Any = 0
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    # All that an interpreter does at its end but taking apart what was imported, which takes more than a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 255)


def _settle() -> None:
    """What was settled by the environment when it was imported; hashes of strings cannot be settled again."""
    import numpy as np
    import torch

    np.random.seed()  # whatever draws from it without a seed must differ between processes
    tempfile.tempdir = None
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))


def _main(address: str) -> None:
    here = {str(ROOT), str(Path(__file__).parent)}
    path = [place for place in sys.path if place not in here]
    for name in (*PRELOAD, *LAZY):
        importlib.import_module(name)
    from voxscale.engine.compile import load_ops

    load_ops()
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    others = sorted({*threads[1:]} - {"jemalloc_bg_thd"})  # Arrow's, which knows of forks
    assert not others, f"a process must have one thread to be forked, not also {others}"
    gc.freeze()  # so that no collection writes to memory that all share
    _become(*_serve(address), path)


if __name__ == "__main__":
    _main(sys.argv[1])
