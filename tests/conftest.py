"""Shared fixtures: several real processes, an S3 server.

Not to be imported by tests: a second copy of this module would point S3 at a second gate, which never opens.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from object_store import KEY, SECRET, Gate, ObjectStore, running
from ports import free_ports

settings.register_profile("fixed", derandomize=True)  # the same cases on every machine and in every run
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parents[1]

GATE = Gate()
# Set before any process is started, so that all have it; whatever a test does, S3 means the server on loopback.
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{GATE.port}",
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

Ranks = Callable[..., list[str]]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server on loopback."""
    with running(tmp_path_factory.mktemp("s3"), GATE) as store:
        yield store


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    """Run a worker script as several real ranks; returns each rank's standard output."""

    def run(script: Path, world: int, *args: str, expect: int | None = 0) -> list[str]:
        port = str(free_ports(1)[0])
        env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
        env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        started = [
            subprocess.Popen(
                [sys.executable, str(script), *args],
                env=env | {"RANK": str(r), "LOCAL_RANK": str(r)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for r in range(world)
        ]
        try:
            # At once: a rank whose pipe is full waits for its reader, and all others wait for that rank.
            with ThreadPoolExecutor(world) as pool:
                done = list(pool.map(lambda p: p.communicate(timeout=240), started))
        finally:
            for p in started:
                p.kill()
        if expect is not None:
            bad = [err[-3000:] for p, (_, err) in zip(started, done, strict=True) if p.returncode != expect]
            assert not bad, "\n".join(bad)
        return [out + (err if expect != 0 else "") for out, err in done]

    return run
