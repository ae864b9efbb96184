"""The house stands: layers, and what an installed wheel contains."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def copy_project(target):
    names = [
        "voxscale",
        "data_prep",
        "pretrain",
        "finetune",
        "launch",
        "configs",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ]
    for name in names:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target / name)


def test_imports_point_down_the_layers():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_a_forbidden_import_would_be_noticed(tmp_path):
    """The check above can fail: a stage that imports another stage breaks the first contract."""
    copy_project(tmp_path)
    path = tmp_path / "finetune" / "folds.py"
    path.write_text(path.read_text() + "\nimport pretrain.config\n")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "1 broken" in done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    copy_project(source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"voxscale"}
    assert {"voxscale/py.typed", "voxscale/report/style.css"} < set(names)
