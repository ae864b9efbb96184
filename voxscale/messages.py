"""Messages between a training process and its loading processes: JSON, with the memory of a batch if there is one."""

import json
import mmap
import os
import socket
from typing import Any

SHORT = 1 << 16
"""Bytes of the longest text that goes by the socket itself; of a large batch the list of its samples is longer."""
_LONG = b"L"
"""What goes by the socket if the text does not: no JSON object begins so."""


def send(pipe: socket.socket, told: dict[str, Any], memory: int | None = None) -> None:
    """Send a message, by a socket that keeps messages whole.

    Args:
        pipe: The socket.
        told: What JSON can hold.
        memory: Descriptor of a piece of memory that goes along; it stays open here.

    Raises:
        OSError: If the other side is gone.
    """
    text, along = json.dumps(told).encode(), [] if memory is None else [memory]
    if len(text) <= SHORT:
        _ = socket.send_fds(pipe, [text], along) if along else pipe.send(text)
        return
    held = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.ftruncate(held, len(text))
        with mmap.mmap(held, len(text)) as room:
            room[:] = text
        socket.send_fds(pipe, [_LONG], [held, *along])
    finally:
        os.close(held)


def receive(pipe: socket.socket) -> tuple[dict[str, Any] | None, int | None]:
    """The next message, and the descriptor of the memory that came with it; None and None once the other side is gone.

    Raises:
        OSError: If it went in the middle of something.
    """
    text, along, _, _ = socket.recv_fds(pipe, SHORT, 2)
    if text == _LONG:
        held, *along = along
        with os.fdopen(held, "rb") as handle:
            handle.seek(0)
            text = handle.read()
    return (json.loads(text) if text else None), (along[0] if along else None)
