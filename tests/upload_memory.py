"""Memory of an upload and a download, beside what a small object needs: `python tests/upload_memory.py MB`.

The command starts the S3 server of the tests on loopback and prints one JSON line.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from object_store import KEY, SECRET, Gate, inside, running

from voxscale.files import sha256_file

ROOT = Path(__file__).resolve().parents[1]
WATCHED = """
import sys, time
from pathlib import Path
from voxscale.remote import RemoteFolder


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


folder, large, small, back = RemoteFolder(sys.argv[1]), *map(Path, sys.argv[2:])
for do in (lambda file: folder.put_some({"large": file}), lambda _: folder.fetch("large", back)):
    folder.put_some({"small": small})  # what is imported and connected once is not the object's
    Path("/proc/self/clear_refs").write_text("5")
    idle, began = status("VmRSS"), time.perf_counter()
    do(large)
    print(status("VmHWM") - idle, time.perf_counter() - began)
"""


def measure(url: Path, folder: Path, size: int) -> dict[str, float]:
    """Peak bytes beyond an idle process, and seconds, of `up` and `down`; checks that the object came back equal.

    Args:
        url: Folder of a server.
        folder: Local one for the files.
        size: Bytes of the object.
    """
    large, small, back = (folder / name for name in ("large", "small", "back"))
    draw = np.random.default_rng(0)
    with large.open("wb") as file:
        for start in range(0, size, 1 << 24):
            file.write(draw.bytes(min(1 << 24, size - start)))
    small.write_bytes(bytes(100))
    command = [sys.executable, "-c", WATCHED, f"s3://{inside(url)}", str(large), str(small), str(back)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    (up, up_s), (down, down_s) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert sha256_file(large) == sha256_file(back)
    return {"up": up, "up_s": up_s, "down": down, "down_s": down_s}


def main() -> None:
    """Measure an object of as many 10^6 bytes as the command line says."""
    gate, size = Gate(), int(float(sys.argv[1]) * 1e6)
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "server").mkdir()
        with running(Path(folder) / "server", gate) as store:
            found = measure(store.folder(), Path(folder), size)
    print(
        json.dumps({"mb": size / 1e6, "up_mb": round(found["up"] / 1e6, 1), "down_mb": round(found["down"] / 1e6, 1)})
    )


if __name__ == "__main__":
    main()
