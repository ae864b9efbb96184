"""A node is reached by its name if the network knows it, else by the address that Slurm tells."""

import subprocess

import pytest

from launch import address
from launch.address import address_of

UNKNOWN = "no-such-node.invalid"


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> list[list[str]]:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(address.subprocess, "run", run)
    return asked


def test_a_name_that_is_known_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, "NodeName=x NodeAddr=10.0.0.7 NodeHostName=y")
    assert address_of("localhost") == "localhost"
    assert asked == []


def test_slurm_is_asked_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, f"NodeName={UNKNOWN} Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=y Version=22\n")
    assert address_of(UNKNOWN) == "10.0.0.7"
    assert asked == [["scontrol", "show", "node", UNKNOWN, "--oneliner"]]


def test_the_name_stays_where_slurm_does_not_know_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "slurm_load_node error: Node not found")
    assert address_of(UNKNOWN) == UNKNOWN
