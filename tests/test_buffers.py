import gc
import math
import multiprocessing
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxscale import buffers

SHAPE = (64, 64, 128)  # 2 MiB of float32


@pytest.fixture(autouse=True)
def fresh():
    gc.collect()
    buffers._free.clear()


def address(array):
    return array.ctypes.data


def test_memory_is_used_again_once_it_is_free():
    first = buffers.empty(SHAPE, np.float32)
    where = address(first)
    del first
    again = buffers.empty(SHAPE, np.float32)
    assert address(again) == where
    assert address(buffers.empty(SHAPE, np.float32)) != where


def flat(array):
    return array.reshape(-1)[5:]


@pytest.mark.parametrize("made", [lambda a: a[3:], flat, np.transpose, torch.from_numpy, memoryview, lambda a: iter(a)])
def test_memory_is_not_used_again_while_anything_made_from_it_lives(made):
    first = buffers.empty(SHAPE, np.float32)
    where = address(first)
    held = made(first)
    del first
    gc.collect()
    assert address(buffers.empty(SHAPE, np.float32)) != where
    del held
    assert where in [address(np.frombuffer(piece, np.uint8)) for piece in buffers._free]


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=30))
def test_arrays_never_share_memory(steps):
    """Arrays of several sizes that come and go each keep what was written to them."""
    alive = []
    for number, (size, drop) in enumerate(steps):
        array = buffers.empty((size, 1 << 19), np.int16)
        array[:] = number
        alive.append((array[:, 7:], number))
        del array
        if drop:
            alive.pop(len(alive) // 2)
    for view, number in alive:
        assert (view == number).all()


def test_threads_do_not_get_the_same_memory():
    wrong = []

    def work(number):
        for _ in range(200):
            array = buffers.empty((1 << 20,), np.uint8)
            array[::4096] = number
            if not (array[::4096] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _overwrite(array):
    buffers.empty(SHAPE, np.float32)[...] = 2  # what was free when the process was made
    array[...] = 3


def test_another_process_does_not_write_to_ours():
    array, free = buffers.empty(SHAPE, np.float32), buffers.empty(SHAPE, np.float32)
    array[...] = 1
    del free
    child = multiprocessing.get_context("fork").Process(target=_overwrite, args=(array,))
    child.start()
    again = buffers.empty(SHAPE, np.float32)
    again[...] = 1
    child.join()
    assert child.exitcode == 0
    assert (array == 1).all()
    assert (again == 1).all()


def test_what_is_kept_is_bounded():
    many = [buffers.empty(SHAPE, np.float32) for _ in range(2 * buffers.KEPT)]
    del many
    assert len(buffers._free) == buffers.KEPT
    large = buffers.empty((buffers.MOST + 1,), np.uint8)
    small = buffers.empty((buffers.LEAST - 1,), np.uint8)
    assert large.base is None
    assert small.base is None


@pytest.mark.parametrize("kind", ["int16", "float32", "float64"])
def test_arrays_are_as_asked(kind):
    array = buffers.empty(SHAPE, kind)
    assert array.shape == SHAPE
    assert array.dtype == kind
    assert array.nbytes == math.prod(SHAPE) * np.dtype(kind).itemsize
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert address(array) % 64 == 0
