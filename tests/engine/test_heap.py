"""Freed memory is used again: without new pages from the system."""

import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys
from voxscale.engine.heap import keep_freed_memory
if sys.argv[1] == "on" and not keep_freed_memory():
    sys.exit(3)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(64 << 20)
before = faults()
for _ in range(5):
    bytearray(64 << 20)
print(faults() - before)
"""


def test_freed_arrays_cost_no_new_pages() -> None:
    counts = {}
    for mode in ("on", "off"):
        done = subprocess.run([sys.executable, "-c", ROUNDS, mode], capture_output=True, text=True, check=False)
        if done.returncode == 3:
            pytest.skip("needs glibc")
        counts[mode] = int(done.stdout)
    assert counts["on"] < 100 < counts["off"]
