"""Small self-made stores for tests."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy import ndimage

from voxscale.contract import PERCENTILES, InputContract
from voxscale.entry import Entry, Occupancy, Privacy
from voxscale.files import append_line
from voxscale.ledger import LEDGER
from voxscale.scan_folder import write_volume
from voxscale.seed import rng
from voxscale.store_root import create_store, stamp_contract
from voxscale.volume import LabelMap, Volume

CLASSES = {1: "ball", 2: "box"}


def scan(seed: int, shape=(20, 24, 22), spacing=(2.0, 1.5, 1.5), corner=None) -> tuple[Volume, LabelMap]:
    """A soft ball and a box in a body in air, as CT; the body is a cube of `corner` voxels at the origin if given."""
    generator = rng(seed, "scan")
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    middle = np.asarray(shape) / 2 + generator.uniform(-1.5, 1.5, 3)
    body = (np.abs((grid - np.asarray(shape) / 2) / (np.asarray(shape) / 2.1)) ** 4).sum(-1) < 1
    if corner is not None:
        body = (grid < corner).all(-1)
    ball = ((grid - middle - (0, 4, 0)) ** 2).sum(-1) < 12
    box = (np.abs(grid - middle + (0, 4, 0)) < 2.5).all(-1)
    values = np.where(body, 0, -1000) + 150 * ball + 300 * box + generator.normal(0, 15, shape)
    values += body * 400 * ndimage.gaussian_filter(generator.normal(0, 10, shape), 1.5)  # no two bodies are alike
    label = np.where(ball, 1, np.where(box, 2, 0)).astype(np.uint8)
    affine = np.diag([*spacing, 1.0])
    return Volume(values.round().astype(np.int16), affine, "CT"), LabelMap(label, affine)


def make_store(
    path: Path, count: int, labelled: bool, contract: InputContract | None = None, datasets=("main",), **how
) -> list[str]:
    """Write a store of `count` scans, of each data set in turn; returns their ids."""
    classes = CLASSES if labelled else {}
    create_store(path, classes)
    ids: list[str] = []
    for number in range(count):
        volume, label = scan(number, **how)
        values = volume.values()
        low, high = np.argwhere(values > -600).min(0), np.argwhere(values > -600).max(0) + 1
        entry = Entry(
            subject=f"subject-{number}",
            dataset=datasets[number % len(datasets)],
            modality="CT",
            modality_from="config",
            shape=volume.voxels.shape,
            spacing=volume.spacing,
            affine=volume.affine.tolist(),
            dtype="int16",
            slope=1.0,
            intercept=0.0,
            percentiles={str(p): float(np.percentile(values, p)) for p in PERCENTILES},
            foreground_box=tuple((int(a), int(b)) for a, b in zip(low, high, strict=True)),
            foreground=float((values > -600).mean()),
            occupancy=Occupancy.measure(values > -600),
            privacy=Privacy(face="none", text="none"),
            label={str(c): int((label.voxels == c).sum()) for c in CLASSES} if labelled else None,
        )
        key = f"{number:016x}"
        entry = write_volume(path, key, volume, label if labelled else None, entry, classes)
        row = {"id": key, "kind": "image", "status": "accepted", "rule": "", "reason": ""}
        append_line(path / LEDGER, row | {"entry": asdict(entry)})
        ids.append(key)
    if contract is not None:
        stamp_contract(path, contract)
    return ids
