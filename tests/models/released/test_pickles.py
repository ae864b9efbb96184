"""Hostile, old and damaged files: nothing in them runs, and errors name no path."""

import argparse
import builtins
import io
import os
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from voxscale.errors import CheckpointError
from voxscale.models.released.pickles import Inert, read_pickled


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def flag(tmp_path: Path) -> Path:
    return tmp_path / "ran"


EVIL: dict[str, Callable[[Path], object]] = {
    "os.system": lambda at: Call(os.system, f"touch {at}"),
    "eval": lambda at: Call(builtins.eval, f"open({str(at)!r}, 'w')"),
    "exec": lambda at: Call(builtins.exec, f"open({str(at)!r}, 'w')"),
    "subprocess": lambda at: Call(subprocess.check_call, ["touch", str(at)]),
    "getattr": lambda at: Call(builtins.getattr, "x", "upper"),
    "open": lambda at: Call(io.open, str(at), "w"),
    "numpy object array": lambda at: np.array([Call(os.system, f"touch {at}")], dtype=object),
    "numpy in a namespace": lambda at: argparse.Namespace(x=np.array([{"y": Call(os.system, f"touch {at}")}])),
    "state": lambda at: argparse.Namespace(x=Call(os.system, f"touch {at}")),
    "torch.load": lambda at: Call(torch.load, str(at)),
    "torch.hub": lambda at: Call(torch.hub.load_state_dict_from_url, f"file://{at}"),
    "breakpoint": lambda at: Call(builtins.breakpoint),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", EVIL)
def test_code_in_a_file_does_not_run(tmp_path: Path, kind: str, zipped: bool) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.model"
    content = {"state_dict": {"a": torch.ones(3)}, "plot_stuff": [EVIL[kind](at)]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"^released\.weights must be .*, not ") as error:
        read_pickled(path)
    assert not at.exists()
    assert str(tmp_path) not in str(error.value)
    assert error.value.__cause__ is None


def test_the_same_files_do_harm_when_read_without_care(tmp_path: Path) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.model"
    torch.save({"x": EVIL["numpy object array"](at)}, path)
    torch.load(path, weights_only=False)  # the control: without it, harmless files would pass the tests above
    assert at.exists()


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_plain_pickles_of_any_protocol_do_not_run(tmp_path: Path, protocol: int) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(EVIL["os.system"](at), protocol=protocol))
    with pytest.raises(CheckpointError, match="must be"):
        read_pickled(path)
    assert not at.exists()


def test_names_built_at_run_time_are_refused(tmp_path: Path) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.pt"
    torch.save({"x": EVIL["os.system"](at)}, path, pickle_protocol=4)
    with pytest.raises(CheckpointError, match="protocol 2.*STACK_GLOBAL"):
        read_pickled(path)
    assert not at.exists()


def test_instances_of_protocol_0_are_refused(tmp_path: Path) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.pt"
    torch.save({}, path)
    code = f"(S'touch {at}'\nios\nsystem\n.".encode()
    rewrite(path, code)
    with pytest.raises(CheckpointError, match="INST"):
        read_pickled(path)
    assert not at.exists()


def rewrite(path: Path, code: bytes) -> None:
    """Replace the pickle within a zip."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in members.items():
            new.writestr(name, code if name.endswith("data.pkl") else data)


def test_a_second_pickle_in_a_zip_does_not_hide_one(tmp_path: Path) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.pt"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps(EVIL["os.system"](at), protocol=2))
    with pytest.raises(CheckpointError, match="asks for"):
        read_pickled(path)
    assert not at.exists()


def test_the_oldest_format_does_not_run(tmp_path: Path) -> None:
    at, path = flag(tmp_path), tmp_path / "weights.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            data = pickle.dumps(EVIL["os.system"](at), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(CheckpointError, match="must be an undamaged file"):
        read_pickled(path)
    assert not at.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_old_checkpoints_are_read_as_nothing(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.model"
    ran: list[int] = []
    training = types.ModuleType("someones_training")

    class Plan:
        def __setstate__(self, state: object) -> None:
            ran.append(1)

    Plan.__module__, Plan.__qualname__ = "someones_training", "Plan"
    training.Plan = Plan  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["someones_training"] = training
    plan = Plan()
    plan.x = 1  # pyright: ignore[reportAttributeAccessIssue]
    content = {
        "state_dict": {"a": torch.arange(3.0), "half": torch.ones(2, dtype=torch.bfloat16)},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "losses": [np.float64(0.5), np.arange(3), np.array([{"x": 1}], dtype=object)],
        "plan": plan,
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    del sys.modules["someones_training"]
    found = read_pickled(path)
    assert torch.equal(found.content["state_dict"]["a"], torch.arange(3.0))
    assert found.content["epoch"] == 3
    for key in ("args", "plan"):
        assert type(found.content[key]) is Inert
    assert all(type(value) is Inert for value in found.content["losses"])
    assert {"argparse.Namespace", "numpy.dtype", "someones_training.Plan"} <= set(found.inert)
    assert not ran
    assert "someones_training" not in sys.modules


def test_what_other_packages_allowed_is_not_called(tmp_path: Path) -> None:
    path, ran = tmp_path / "weights.pt", []
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([(ran.append, "argparse.Namespace")])
    try:
        torch.save({"a": argparse.Namespace(x=1)}, path)
        assert type(read_pickled(path).content["a"]) is Inert
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    assert not ran


def test_nothing_stays_allowed_after_reading(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": argparse.Namespace()}, path)
    before = torch.serialization.get_safe_globals()
    read_pickled(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def text(path: Path) -> None:
    path.write_text("hello")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", [cut, text, nothing, gone, folder])
def test_damaged_files_are_one_clear_line(tmp_path: Path, damage: Callable[[Path], None], zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(300)}, path, _use_new_zipfile_serialization=zipped)
    damage(path)
    with pytest.raises(CheckpointError, match=r"^released\.weights must be a.* file .*, not ") as error:
        read_pickled(path)
    assert str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_that_are_not_used_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(50_000_000)}, path)
    code = (
        "import sys, resource; from pathlib import Path; from voxscale.models.released.pickles import read_pickled;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; found = read_pickled(Path(sys.argv[1]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 50_000  # kB; the tensor has 200,000
