"""One safetensors file of whole fp32 weights: `python -m voxscale.engine.export RUN OUT.safetensors [KIND]`.

The file is readable without this package; its metadata hold the model's
config, the input contract and the stage's config as JSON.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from voxscale.cli import guarded
from voxscale.engine import checkpoint
from voxscale.engine.pieces import header
from voxscale.errors import CheckpointError
from voxscale.files import commit_folder
from voxscale.models.transfer import BACKBONE


def export(source: Path, out: Path, kind: str = "weights") -> None:
    """Write whole tensors of a checkpoint into one file, one tensor in memory at a time; buffers are part of weights.

    Of a pretraining network the backbone is written, by the names that it has alone.

    Args:
        source: Checkpoint folder, not verified here.
        out: The file; written beside, flushed, renamed.
        kind: `weights`, or a set that the run saved besides, such as `ema`.

    Raises:
        CheckpointError: If the checkpoint holds none of this kind.
    """
    tensors = checkpoint.stored(source, kind)
    if not tensors:
        raise CheckpointError(f"export.kind must be in the checkpoint, not {kind}")
    shapes = {name: (torch.float32, shape) for name, shape in tensors.shapes.items()}
    buffers = checkpoint.load_buffers(source) if kind == "weights" else {}
    shapes |= {name: (value.dtype, tuple(value.shape)) for name, value in buffers.items()}
    about = checkpoint.read_about(source)
    shapes = {name: shapes[name] for name in shapes if name.startswith(BACKBONE)} or shapes
    says = {key: json.dumps(about[key]) for key in ("position", "model", "contract", "config") if key in about}
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(
                header([(n.removeprefix(BACKBONE), *shapes[n]) for n in shapes], {"format": "pt", "kind": kind} | says)
            )
            for name in shapes:
                value = buffers[name] if name in buffers else tensors[name].float()
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def keep_weights_only(run: Path) -> None:
    """Reduce a finished run to its newest weights, in `run/weights`; the moments take twice their room."""
    found = checkpoint.latest(run)
    if found is not None:
        beside = run / ".weights.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        export(found, beside / "model.safetensors")
        shutil.copy2(found / "state.json", beside / "state.json")
        commit_folder(beside, run / "weights")
        shutil.rmtree(run / "checkpoints")


def main(arguments: list[str]) -> int:
    """Export a run's newest undamaged checkpoint, or one checkpoint that is named; returns the exit status."""
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2

    def work() -> None:
        source, out = Path(arguments[0]), Path(arguments[1])
        if (source / "manifest.json").is_file():
            checkpoint.verify(source)
            found = source
        else:
            found = checkpoint.latest(source)
        if found is None:
            raise CheckpointError(f"export must begin with a run with a checkpoint, not {source.name}")
        export(found, out, *arguments[2:])

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
