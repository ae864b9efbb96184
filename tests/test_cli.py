"""What a command says when something is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from voxscale.cli import guarded

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = (
    "import runpy, sys; sys.modules['deepspeed'] = None; sys.argv = ['pretrain', 'configs/pretrain.py:demo'];"
    "runpy.run_module('pretrain', run_name='__main__', alter_sys=True)"
)


def test_training_without_deepspeed_is_one_line_that_names_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, check=False)
    said = "error: package deepspeed must be installed, but cannot be found; run `make install`, or install it with pip"
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, said)
    assert "Traceback" not in done.stderr


def test_a_module_that_a_package_lacks_is_a_defect_and_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def package() -> None:
        import no_such_package_here.part  # noqa: F401  # pyright: ignore[reportMissingImports]

    def part() -> None:
        import voxscale.no_such_part  # noqa: F401  # pyright: ignore[reportMissingImports]

    assert guarded(package) == 1
    assert "error: package no_such_package_here must be installed" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        guarded(part)
