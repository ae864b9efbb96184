"""Work handed to threads, a bounded distance ahead of what uses it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T], most: int) -> Iterator[U]:
    """Like `pool.map`, in order, but with at most `most` calls ahead of the consumer."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
