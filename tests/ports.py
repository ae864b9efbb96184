"""Ports on loopback for servers and ranks of tests."""

import contextlib
import random
import socket
from pathlib import Path

FREE = (10_000, min(32_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])))


def free_ports(count: int) -> list[int]:
    """Ports that are free and differ, all held at once while they are looked for.

    They lie below those that the kernel gives to connections that go out: a port that is let go, to be taken up again
    later or by another process, is not given away in between.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            held, port = stack.enter_context(socket.socket()), random.SystemRandom().randrange(*FREE)
            with contextlib.suppress(OSError):
                held.bind(("127.0.0.1", port))
                found.append(port)
        return found
