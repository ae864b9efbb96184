"""Shared fixtures: several real processes, an S3 server.

Not to be imported by tests: a second copy of this module would point S3 at a second gate, which never opens.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from hypothesis import settings
from object_store import KEY, SECRET, Gate, ObjectStore, running
from ports import free_ports
from warm_python import start

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same cases on every machine and in every run
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

SLOWEST = (
    "launch/test_stages.py",
    "launch/test_chain.py",
    "models/test_registry.py",
    "engine/test_parity.py",
    "launch/test_study.py",
    "launch/test_parts.py",
    "pretrain/test_source.py",
    "data_prep/test_kills.py",
    "pretrain/test_command.py",
    "pretrain/probe/test_prober.py",
    "launch/test_report.py",
    "engine/test_watchdog.py",
    "engine/test_kill.py",
    "engine/test_families.py",
    "pretrain/test_runs.py",
    "engine/test_resume.py",
    "engine/test_ema.py",
    "engine/test_slices.py",
)
"""Files that take longest, begun first, so that no worker is left with one of them while the others have done."""


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # else xdist begins with the files of most tests, which are quick ones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {ROOT / "tests" / name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


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
        with ExitStack() as files:
            said = [[files.enter_context(TemporaryFile("w+")) for _ in range(2)] for _ in range(world)]
            started = [
                start([script, *args], env | {"RANK": str(r), "LOCAL_RANK": str(r)}, out, err)
                for r, (out, err) in enumerate(said)
            ]
            try:
                deadline = time.monotonic() + 240
                codes = [process.wait(max(0.0, deadline - time.monotonic())) for process in started]
            finally:
                for process in started:
                    process.kill()
            for file in (file for both in said for file in both):
                file.seek(0)
            done = [(out.read(), err.read()) for out, err in said]
        if expect is not None:
            bad = [err[-3000:] for code, (_, err) in zip(codes, done, strict=True) if code != expect]
            assert not bad, "\n".join(bad)
        return [out + (err if expect != 0 else "") for out, err in done]

    return run
