import json
import subprocess
import sys
import time

import pytest

from launch import machine
from launch.machine import StageWatch, describe


def cut_short(running):
    """A stage that lets a child take 0.3 GB and then fails."""
    hog = "import time; kept = bytearray(300_000_000); time.sleep(1.5)"
    with StageWatch(running):
        subprocess.run([sys.executable, "-c", hog], check=True)
        raise RuntimeError("cut")


def test_memory_of_children_is_counted_and_earlier_attempts_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SAMPLE_S", 0.05)
    running = tmp_path / "stage.running"
    with pytest.raises(RuntimeError, match="cut"):
        cut_short(running)
    first = json.loads(running.read_text())
    assert first["peak_gb"] > 0.3
    assert first["seconds"] >= 1.5
    with StageWatch(running) as watch:
        time.sleep(0.2)
    again = watch.known()
    assert again["seconds"] >= first["seconds"] + 0.2
    assert again["peak_gb"] >= first["peak_gb"]


def test_the_machine_is_described_without_its_name():
    import socket

    found = describe()
    assert {"cpu", "cores", "memory_gb", "python", "torch", "deepspeed", "commit"} <= found.keys()
    assert socket.gethostname() not in [str(value) for value in found.values()]
