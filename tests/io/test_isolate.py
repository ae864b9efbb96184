import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from voxscale.errors import DataError
from voxscale.io.isolate import CALLS, SPARE_BYTES, Readers, run_isolated
from voxscale.volume import check_affine


def reason(function, *args, seconds=30.0, gigabytes=4.0):
    with pytest.raises(DataError) as error:
        run_isolated(function, args, seconds, gigabytes)
    return error.value.reason


def test_result_comes_from_another_process():
    assert run_isolated(os.getpid, (), 30, 4) not in (os.getpid(), run_isolated(os.getpid, (), 30, 4))


def test_data_errors_keep_reason_and_text():
    with pytest.raises(DataError, match="longer than 0 mm") as error:
        run_isolated(check_affine, (np.diag([0.0, 1, 1, 1]),), 30, 4)
    assert error.value.reason == "bad_affine"


def test_other_errors_tell_their_type_only():
    with pytest.raises(DataError, match="ValueError") as error:
        run_isolated(int, ("DOE^JANE",), 30, 4)
    assert error.value.reason == "reader_failed"
    assert "DOE" not in str(error.value)


def test_a_signal_is_a_crash():
    with pytest.raises(DataError, match="SIGABRT") as error:
        run_isolated(os.abort, (), 30, 4)
    assert error.value.reason == "reader_crashed"


def test_silent_exit_is_a_crash():
    assert reason(os._exit, 3) == "reader_crashed"


def test_time_limit():
    start = time.monotonic()
    assert reason(time.sleep, 60, seconds=0.3) == "timeout"
    assert time.monotonic() - start < 10


def test_memory_limit():
    assert reason(bytearray, 3 * 10**9, gigabytes=2) == "out_of_memory"
    assert reason(np.ones, (3 * 10**8,), gigabytes=2) == "out_of_memory"


def test_full_disk_is_an_os_error_without_its_path():
    if not Path("/dev/full").exists():
        return
    with pytest.raises(OSError, match="space") as error:
        run_isolated(Path.write_bytes, (Path("/dev/full"), b"x"), 30, 4)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename is None


def test_many_threads_do_not_mix_up_results_and_crashes():
    def one(number):
        return reason(os.abort) if number % 3 == 0 else run_isolated(abs, (-number,), 30, 4)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, range(24)))
    assert found == ["reader_crashed" if n % 3 == 0 else n for n in range(24)]


def test_nothing_is_left_running():
    with pytest.raises(DataError):
        run_isolated(time.sleep, (60,), 0.2, 4)
    children = Path("/proc/self/task").glob("*/children") if Path("/proc").exists() else []
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for file in children for pid in file.read_text().split()]
    assert not any(b"sleep" in name for name in names)


@pytest.fixture
def readers():
    kept = Readers()
    yield kept
    kept.close()


def crash_if_used(mark):
    """Crash in a process that has the mark of an earlier call."""
    if os.environ.get("MARK") == mark:
        os.abort()
    os.environ["MARK"] = mark
    return os.getpid()


def test_a_reader_is_used_again_until_a_call_ends_badly(readers):
    first = readers.call(os.getpid, (), 30, 4)
    assert readers.call(os.getpid, (), 30, 4) == first
    with pytest.raises(DataError, match="longer than 0 mm"):
        readers.call(check_affine, (np.diag([0.0, 1, 1, 1]),), 30, 4)
    assert readers.call(os.getpid, (), 30, 4) == first
    assert readers.call(os.getpid, (), 30, 5) != first  # other limits need another process
    for reason_, call in (
        ("reader_crashed", (os.abort, (), 30, 4)),
        ("timeout", (time.sleep, (60,), 0.2, 4)),
        ("out_of_memory", (np.ones, (10**9,), 30, 4)),
        ("reader_failed", (int, ("x",), 30, 4)),
    ):
        before = readers.call(os.getpid, (), 30, 4)
        with pytest.raises(DataError) as error:
            readers.call(*call)
        assert error.value.reason == reason_
        assert readers.call(os.getpid, (), 30, 4) != before
        assert not Path(f"/proc/{before}").exists()


def test_what_an_earlier_call_did_is_not_charged_to_a_later_one(readers):
    first = readers.call(crash_if_used, ("a",), 30, 4)
    assert readers.call(crash_if_used, ("a",), 30, 4) != first


def test_readers_end_after_many_calls_or_much_that_they_keep(readers, monkeypatch):
    first = readers.call(os.getpid, (), 30, 4)
    same = sum(readers.call(os.getpid, (), 30, 4) == first for _ in range(CALLS))
    assert same == CALLS - 1
    second = readers.call(os.getpid, (), 30, 4)
    readers.call(keep, (SPARE_BYTES + (1 << 26),), 30, 4)
    assert readers.call(os.getpid, (), 30, 4) != second


def keep(size):
    """Never give back some memory."""
    KEPT.append(np.ones(size, dtype=np.uint8))


KEPT = []


def test_readers_of_many_threads_and_their_end():
    readers = Readers()

    def one(number):
        return readers.call(os.getpid, (), 30, 4) if number % 2 else readers.call(abs, (-number,), 30, 4)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(40)))
    assert found[::2] == list(range(0, 40, 2))
    pids = set(found[1::2])
    assert 1 <= len(pids) <= 3
    readers.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
