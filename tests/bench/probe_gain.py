"""Is a trained network better than itself untrained, in the frozen probe, over several seeds?

python tests/bench/probe_gain.py SHARDS STORE OUT [PRESET ...]: trains presets of configs/probe.py with seeds 0, 1, 2
where that is not done, and prints tables for the last step at which all runs of a preset were probed.

`masked_shuffled` is the preset `masked` with what is to be told taken from another sample of the batch: all the same
steps, with nothing to learn from. So are `part_whole_shuffled` and `part_whole_contrast_shuffled`. Each preset is
compared with its own such control and with that of `masked`, where those were trained.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("volume_fusion", "masked", "part_whole", "graph_matching", "patch_matching", "mixture")
SEEDS = (0, 1, 2)
SHUFFLED = "_shuffled"
CONTROL = f"masked{SHUFFLED}"
TRUTHS = {"masked": "masked-reconstruction", "part_whole": "part-whole", "part_whole_contrast": "part-whole"}
"""Presets whose objective can be told another sample's truth, and what it is called on the command line."""

SOURCES = ("decoder", "encoder", "intensity")
OTHERS = (
    "encoder/landmark_mm",
    "decoder/landmark_mm",
    "encoder/effective_rank",
    "decoder/effective_rank",
    "embedding/effective_rank",
    "embedding/std",
    "embedding/compose_gap",
    "embedding/decompose_slots",
    "embedding/decompose_scans",
    "embedding/interpolation_gap",
)


def train(preset: str, seed: int, shards: Path, store: Path, run: Path) -> None:
    """One run, in a process of its own."""
    flags = ["--shards", shards, "--probe.labelled", store, "--run", run, "--seed", seed]
    if preset.endswith(SHUFFLED):
        preset = preset.removesuffix(SHUFFLED)
        flags += [f"--objective.{TRUTHS[preset]}.truth", "another"]
    command = [sys.executable, "-m", "pretrain", f"configs/probe.py:{preset}", *map(str, flags)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def read(run: Path) -> dict[int, dict[str, float]]:
    """The rows of the probes by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if any(key.startswith("probe/") for key in row)}


def table(preset: str, runs: list[Path]) -> str:
    """Means over seeds as Markdown; the interval of the gain is Student's over seeds, those of a seed over subjects."""
    found = [read(run) for run in runs]
    step = max(set.intersection(*(set(rows) for rows in found)))
    last = [rows[step] for rows in found]
    lines = [f"`{preset}`, step {step}, {len(runs)} seeds", ""]
    lines.append("| probe | untrained | trained | gain | of each seed | labels shuffled | features shuffled |")
    lines.append("|---|---|---|---|---|---|---|")
    for name in (f"{source}/{kind}" for source in SOURCES for kind in ("knn_dice", "linear_dice")):

        def mean(what: str, key: str = f"probe/{name}") -> float:
            return fmean(row[key + what] for row in last)

        gains = [row[f"probe/{name}.gain"] for row in last]
        reach = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains) if len(gains) > 1 else float("nan")
        each = "; ".join(
            f"{row[f'probe/{name}.gain']:+.3f} ({row[f'probe/{name}.gain_low']:+.3f} to"
            f" {row[f'probe/{name}.gain_high']:+.3f})"
            for row in last
        )
        lines.append(
            f"| {name.replace('/', ', ').replace('_dice', '')} | {mean('.untrained'):.3f} | {mean(''):.3f} "
            f"| {fmean(gains):+.3f} ({fmean(gains) - reach:+.3f} to {fmean(gains) + reach:+.3f}) | {each} "
            f"| {mean('.shuffled_labels'):.3f} | {mean('.shuffled_features'):.3f} |"
        )
    return "\n".join(lines) + "\n"


def others(preset: str, runs: list[Path]) -> str:
    """Signs of collapse, landmarks and properties of embeddings; intervals are Student's over seeds."""
    found = [read(run) for run in runs]
    step = max(set.intersection(*(set(rows) for rows in found)))
    lines = [
        f"`{preset}`, step {step}, {len(runs)} seeds",
        "",
        "| | untrained | trained | change |",
        "|---|---|---|---|",
    ]
    for name in (name for name in OTHERS if all(f"probe/{name}" in rows[step] for rows in found)):
        before, after = ([rows[step][f"probe/{name}{what}"] for rows in found] for what in (".untrained", ""))
        change = [b - a for a, b in zip(before, after, strict=True)]
        reach = stats.t.ppf(0.975, len(change) - 1) * stats.sem(change) if len(change) > 1 else float("nan")
        mean = fmean(change)
        ends = f"{mean:+.3f} ({mean - reach:+.3f} to {mean + reach:+.3f})"
        lines.append(f"| {name.replace('/', ', ')} | {fmean(before):.3f} | {fmean(after):.3f} | {ends} |")
    return "\n".join(lines) + "\n"


def against(preset: str, runs: list[Path], control: list[Path]) -> str:
    """What a preset gains over the control of the same seeds, at the last step of both; Student's over seeds."""
    pairs = [(read(run), read(other)) for run, other in zip(runs, control, strict=True)]
    step = max(set.intersection(*(set(rows) & set(others) for rows, others in pairs)))
    lines = [f"`{preset}` less `{control[0].name.rsplit('-', 1)[0]}`, step {step}, {len(runs)} seeds", ""]
    lines += ["| probe | difference | of each seed |", "|---|---|---|"]
    for name in (f"{source}/{kind}" for source in SOURCES[:2] for kind in ("knn_dice", "linear_dice")):
        each = [rows[step][f"probe/{name}"] - others[step][f"probe/{name}"] for rows, others in pairs]
        reach = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each)
        mean, text = fmean(each), "; ".join(f"{one:+.3f}" for one in each)
        ends = f"{mean - reach:+.3f} to {mean + reach:+.3f}"
        lines.append(f"| {name.replace('/', ', ').replace('_dice', '')} | {mean:+.3f} ({ends}) | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what is missing, then print the tables."""
    shards, store, out = (Path(part).resolve() for part in sys.argv[1:4])
    for preset in sys.argv[4:] or PRESETS:
        runs = [out / f"{preset}-{seed}" for seed in SEEDS]
        for seed, run in zip(SEEDS, runs, strict=True):
            if not (run / "preview.npz").is_file():
                train(preset, seed, shards, store, run)
        print(table(preset, runs))
        print(others(preset, runs))
        for name in dict.fromkeys((f"{preset}{SHUFFLED}", CONTROL)):
            control = [out / f"{name}-{seed}" for seed in SEEDS]
            if preset not in (name, "volume_fusion") and all((run / "preview.npz").is_file() for run in control):
                print(against(preset, runs, control))


if __name__ == "__main__":
    main()
