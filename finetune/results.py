"""What an experiment leaves: a row per case, the summary, the pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.config import FinetuneConfig
from finetune.summary import ARMS, by_case, summarise, summarise_arm
from voxscale.files import write_arrays
from voxscale.metrics.dice import dice_per_label
from voxscale.store import Store
from voxscale.stream.crop import intensity_scale

PREVIEWS = ("best", "median", "worst")
"""Which differences are shown in the report."""


def score_cases(
    store: Store, labels: Sequence[int], folder: Path, cases: Sequence[str], place: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Score the predictions in a folder.

    A label that a case does not show is not scored in it, whatever was
    predicted, so that both arms are scored on the same labels.

    Args:
        store: Holds the true labels.
        labels: Labels of the task.
        folder: Holds `<case>.npz` with `labels` on the scan's grid.
        cases: Ids to score.
        place: Fold, seed and arm, copied into each row.
    """
    rows: list[dict[str, Any]] = []
    for case in cases:
        truth = store.read_label(case)
        shown = set(np.unique(truth).tolist())
        dice = dice_per_label(read_prediction(folder, case), truth, labels)
        scores = {str(label): dice[label] if label in shown else None for label in labels}
        rows.append({"case": case, "subject": store.entries[case].subject, **place, "dice": scores})
    return rows


def read_prediction(folder: Path, case: str) -> NDArray[np.uint8]:
    """Predicted labels of one case on the scan's grid."""
    with np.load(folder / f"{case}.npz", allow_pickle=False) as arrays:
        return arrays["labels"]


def collect(config: FinetuneConfig, classes: Mapping[int, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file `results.json`, without its previews; see docs/design.md."""
    labels = [str(label) for label in sorted(classes)]
    both = len(config.arms) == 2
    summary = summarise(rows, labels, config.seeds) if both else summarise_arm(rows, config.arms[0], labels)
    transferred = "pretrained" in config.arms
    return {
        "arms": [arm for arm in ARMS if arm in config.arms],
        "classes": {str(label): name for label, name in sorted(classes.items())},
        "folds": config.folds,
        "seeds": list(config.seeds),
        "steps": config.loop.steps,
        "subjects": config.subjects,
        "cases": rows,
        "summary": summary,
        "transfer": json.loads((config.run / "transfer.json").read_text()) if transferred else None,
    }


def chosen(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Cases with the best, the median and the worst difference between the arms."""
    scratch, pretrained = (by_case(rows, arm, None) for arm in ARMS)
    ranked = sorted(scratch.keys() & pretrained.keys(), key=lambda case: (scratch[case] - pretrained[case], case))
    places = (0, len(ranked) // 2, len(ranked) - 1)
    found = {ranked[place]: which for place, which in reversed(list(zip(places, PREVIEWS, strict=True)))}
    return {case: found[case] for case in ranked if case in found}


def save_previews(store: Store, run: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Write image, truth and both arms' predictions of the chosen cases; returns the results' `previews`."""
    assert store.contract is not None  # open_task has checked it
    out: list[dict[str, str]] = []
    for case, which in chosen(rows).items():
        entry = store.entries[case]
        scale, offset = intensity_scale(entry, store.contract)
        image = np.clip(store.read(case).astype(np.float32) * scale + offset, 0, 1)
        arrays: dict[str, NDArray[Any]] = {"image": image.astype(np.float16), "truth": store.read_label(case)}
        for row in reversed([r for r in rows if r["case"] == case]):  # of several seeds, show the first
            arrays[row["arm"]] = read_prediction(fold_folder(run, row["arm"], row["seed"], row["fold"]), case)
        write_arrays(run / "previews" / f"{case}.npz", arrays | {"spacing": np.asarray(entry.spacing)})
        out.append({"case": case, "label": which})
    return out


def fold_folder(run: Path, arm: str, seed: int, fold: int) -> Path:
    """Where one training of an experiment keeps its files."""
    return run / arm / f"seed-{seed}" / f"fold-{fold}"
