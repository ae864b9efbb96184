"""Where a node of a Slurm job is reached."""

import re
import socket
import subprocess

SECONDS = 10


def address_of(node: str) -> str:
    """The node's name where the network knows it, else the address that Slurm has for it.

    Ranks would wait for a name that nobody knows until they are ended.

    Args:
        node: As Slurm calls it.
    """
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        command = ["scontrol", "show", "node", node, "--oneliner"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return node
        found = re.search(r"\bNodeAddr=(\S+)", told)
        return node if found is None else found[1]
    return node
