import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch.report import ReportInputs, fine_print, result_table, sentence, write_report
from launch.report_data import left_out_text
from launch.report_pretext import pretext_section
from launch.report_probes import probes_section, what_it_does
from launch.report_results import case_scores, headline_section, result_section
from launch.report_run import curves_section, limits_section, strip_paths
from voxscale.entry import Entry
from voxscale.errors import DataError
from voxscale.files import append_line
from voxscale.report.table import MINUS, MISSING
from voxscale.scan_folder import write_volume
from voxscale.store_root import create_store
from voxscale.volume import LabelMap, Volume

SECTIONS = [
    "In short",
    "Result",
    "Predictions",
    "Pretext task",
    "Curves",
    "Data",
    "Transfer",
    "Cost",
    "Settings",
    "What this is not",
]
CLASSES = {"1": "anterior", "2": "posterior <b>"}
VOID = {"meta", "img", "br", "link", "input", "hr", "col"}


def ellipsoid(shape: tuple[int, int, int], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Mask of an ellipsoid; centre and radii as shares of the shape."""
    axes = [(np.arange(n) + 0.5) / n for n in shape]
    grids = np.meshgrid(*axes, indexing="ij")
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True)) < 1


def phantom(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body with two organs in HU, and the label of the organs."""
    draw = np.random.default_rng(seed)
    image = np.full(shape, -1000.0)
    image[ellipsoid(shape, (0.5, 0.5, 0.5), (0.62, 0.4, 0.45))] = 40
    image[ellipsoid(shape, (0.5, 0.28, 0.5), (0.6, 0.08, 0.08))] = 600
    label = np.zeros(shape, np.uint8)
    shift = draw.uniform(-0.04, 0.04, 3)
    for value, centre, radii in ((1, (0.55, 0.55, 0.65), (0.2, 0.16, 0.15)), (2, (0.45, 0.5, 0.33), (0.15, 0.12, 0.1))):
        organ = ellipsoid(shape, tuple(np.add(centre, shift)), radii)
        label[organ] = value
        image[organ] = 120 + 90 * value
    return (image + draw.normal(0, 30, shape)).astype(np.float32), label


def make_store(path: Path, labelled: bool, size: int) -> None:
    """Write a store of four scans, the unlabelled one with three refused inputs."""
    classes = {int(value): name for value, name in CLASSES.items()} if labelled else {}
    create_store(path, classes)
    for number in range(4):
        name = f"{'ab'[labelled]}{number:015x}"
        shape, spacing = (size, size + 8, size + 8 * number), (3.0 - 0.5 * number, 1.5, 1.5)
        image, voxels = phantom(shape, number)
        affine = np.diag([*spacing, 1.0])
        volume = Volume(image.astype(np.int16), affine, "MR" if number == 3 else "CT")
        label = LabelMap(voxels, affine) if labelled else None
        entry = Entry(
            subject=f"s{number}",
            modality=volume.modality,
            modality_from="values",
            shape=shape,
            spacing=spacing,
            affine=affine.tolist(),
            dtype="int16",
            slope=1.0,
            intercept=0.0,
            percentiles={"0.5": -1000.0, "99.5": 650.0},
            foreground_box=((0, shape[0]), (0, shape[1]), (0, shape[2])),
            foreground=0.5,
            label={"1": int((voxels == 1).sum())} if labelled else None,
        )
        entry = asdict(write_volume(path, name, volume, label, entry, classes))
        row = {"id": name, "kind": "image", "status": "accepted", "rule": None, "reason": None, "entry": entry}
        append_line(path / "ledger.jsonl", row)
    images = [
        ("c0", "image", "rejected", "nonfinite", "42 voxels are NaN or <infinite>"),
        ("c1", "image", "rejected", "sheared", "axes of /data/DOE^JANE/scan.nii are sheared by 5 degrees"),
        ("c2", "image", "quarantined", "duplicate", "same voxels as a0"),
    ]
    labels = [("d0", "label", "rejected", "label_grid", "label without a scan")]
    for name, kind, status, rule, reason in labels if labelled else images:
        row = {"id": name, "kind": kind, "status": status, "rule": rule, "reason": reason, "entry": None}
        append_line(path / "ledger.jsonl", row)


def make_results(change: tuple[float, float, float] = (0.07, 0.03, 0.11), p_value: float = 0.001) -> dict[str, Any]:
    """Results in the format of docs/design.md; `change` is the difference and its interval."""
    mean, low, high = change
    cases = []
    for number in range(12):
        for arm, gain in (("scratch", 0.0), ("pretrained", mean + 0.01 * (number - 5.5))):
            base = 0.5 + 0.02 * number + gain
            dice = {"1": base + 0.05, "2": None if number == 0 else base - 0.05}
            row = {"case": f"b{number:015x}", "subject": f"s{number}", "fold": number % 4, "seed": 0}
            cases.append({**row, "arm": arm, "dice": dice})

    def part(value: float, bounds: tuple[float, float]) -> dict[str, Any]:
        per_label = {
            k: {"dice_mean": value + d, "ci95": [bounds[0] + d, bounds[1] + d]}
            for k, d in (("1", 0.011), ("2", -0.011))
        }
        return {"dice_mean": value, "ci95": list(bounds), "per_label": per_label}

    difference = {**part(mean, (low, high)), "p_value": p_value, "least_p": 0.0005, "n_cases": 12, "n_seeds": 1}
    return {
        "arms": ["scratch", "pretrained"],
        "classes": CLASSES,
        "folds": 4,
        "seeds": [0],
        "steps": 120,
        "cases": cases,
        "summary": {
            "scratch": part(0.61, (0.55, 0.67)),
            "pretrained": part(0.61 + mean, (0.63, 0.73)),
            "difference": difference,
        },
        "transfer": {"loaded": ["enc.0.weight", "enc.0.bias"], "reinitialised": ["head.weight"], "unused": []},
        "previews": [{"case": f"b{number:015x}"} for number in range(12)],
    }


def write_metrics(path: Path, steps: int, start: float, end: float) -> None:
    draw = np.random.default_rng(steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(steps):
        loss = end + (start - end) * np.exp(-4 * step / steps) + draw.normal(0, 0.03)
        row = {"step": 10 * step, "loss": loss, "dice": 0.6 * loss, "ce": 0.4 * loss, "lr": 1e-3 * (1 - step / steps)}
        row |= {"pretext_accuracy": 0.25 + 0.5 * step / steps, "pretext_dice": 0.5}
        row |= {"grad_norm": 1.0, "samples_per_s": 3.2, "voxels_per_s": 2.5e6, "seconds": step, "rss_gb": 2.0}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def make_previews(root: Path, size: int) -> None:
    shape = (size, size + 4, size + 8)
    draw = np.random.default_rng(0)
    for number in range(12):
        image, truth = phantom(shape, number)
        scratch, pretrained = np.roll(truth, 3, 2), np.roll(truth, 1, 1)
        (root / "finetune" / "previews").mkdir(parents=True, exist_ok=True)
        file = root / "finetune" / "previews" / f"b{number:015x}.npz"
        np.savez(file, image=image, truth=truth, scratch=scratch, pretrained=pretrained, spacing=(2.0, 1.5, 1.5))
    back, fore = ((phantom(shape, seed)[0] + 1000) / 2000 for seed in (20, 21))
    blocks = draw.integers(0, 5, [-(-n // 8) for n in shape])
    label = np.kron(blocks, np.ones((8, 8, 8)))[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
    wrong = draw.random(shape) < 0.25
    guess = np.where(wrong, draw.integers(0, 5, shape), label).astype(np.uint8)
    fused = back + label / 4 * (fore - back)
    arrays = {"background": back, "foreground": fore, "fused": fused, "label": label, "prediction": guess}
    np.savez(root / "pretrain" / "preview.npz", **arrays, spacing=(1.5, 1.5, 1.5))


def make_run(root: Path, size: int = 24, results: Any = None) -> ReportInputs:
    """A whole run on disk, small but complete."""
    for name in ("data", "task"):
        make_store(root / name, name == "task", size)
    write_metrics(root / "pretrain" / "metrics.jsonl", 60, 2.0, 0.9)
    for arm, end in (("scratch", 0.6), ("pretrained", 0.4)):
        for fold in range(2):
            write_metrics(root / "finetune" / arm / "seed-0" / f"fold-{fold}" / "metrics.jsonl", 50 + fold, 1.5, end)
    make_previews(root, size)
    (root / "shards").mkdir()
    manifest = {"contract": {"spacing": [1.5, 1.5, 1.5]}, "patch": [64, 64, 64], "skipped_air": 7, "samples": 42}
    (root / "shards" / "manifest.json").write_text(json.dumps({**manifest, "shards": [{"name": "shard-00000.tar"}]}))
    pretrain = {"data": "/secret/place/shards", "optim": {"lr": 0.001}, "win": "C:\\Users\\Jane Doe\\scans"}
    (root / "pretrain" / "config.json").write_text(json.dumps(pretrain))
    (root / "finetune" / "config.json").write_text(json.dumps({"steps": 120}))
    (root / "finetune" / "results.json").write_text(json.dumps(results or make_results()))
    return ReportInputs(
        title="VoxScale <demo>",
        synthetic=True,
        data_store=root / "data",
        task_store=root / "task",
        shards=root / "shards",
        pretrain_run=root / "pretrain",
        finetune_run=root / "finetune",
        seconds={"ingest": 12.5, "pack": 3.0, "pretrain": 240.0, "finetune": 400.0},
        peak_rss_gb=3.4,
        config_hash="0123456789ab",
        machine={"cpu": "x86", "cores": 2, "memory": "24 GB", "torch": "2.13.0", "commit": "b591fbf"},
    )


class Page(HTMLParser):
    """Checks nesting while it collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and source of one finished report."""
    root = tmp_path_factory.mktemp("run")
    return root, write_report(root / "out", make_run(root)).read_text()


def test_page_is_well_formed_and_has_all_sections_in_order(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    assert page.open == []
    assert page.tags[0][0] == "html"
    anchors = [s["id"] for s in page.all("section")]
    assert [a["href"] for a in page.all("a")][1:] == [f"#{anchor}" for anchor in anchors]
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", made[1])
    assert titles == SECTIONS
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_fetches_nothing(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attrs.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    assert "@import" not in made[1]
    assert set(re.findall(r"url\((.)", made[1])) <= {"#"}
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))


def test_every_picture_is_described(made: tuple[Path, str]) -> None:
    page = Page(made[1])
    images, charts = page.all("img"), page.all("svg")
    # Three cases of three pictures, five of the pretext task, four scans of each store.
    assert len(images) == 9 + 5 + 8
    # Two of the result, three curves, two of the geometry of each store.
    assert len(charts) == 2 + 3 + 4
    assert all(image["alt"] for image in images)
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in charts)


def test_numbers_of_the_files_stand_in_the_page(made: tuple[Path, str]) -> None:
    text = Page(made[1]).text
    assert sentence(make_results()) in text
    for wanted in (
        "0.621",  # Dice of label 1 from scratch
        "+0.081",  # its difference
        "0.041 to 0.121",  # and interval
        "p = 0.001",
        "0.0005",  # least p
        "label without a scan",
        "12 cases (one per subject), 4 folds, 1 seed (0)",
        "0.03 to 0.11, p = 0.001",  # small print of the tile
        "0 unlabelled scans that are also in the task were left out",
        "11 scans found: 8 accepted, 2 rejected and 1 set aside",
        "42 bricks",
        "7 bricks of air",
        "6 min 40 s",  # fine-tuning
        "10 min 56 s",  # total
        "2.5 M",  # voxels per second
        "3.4 GB",
        "share a model",
        "Loaded 2 taken",
        "0123456789ab",
        "digital phantoms",
    ):
        assert wanted in text, wanted


def test_strings_of_the_run_are_escaped(made: tuple[Path, str]) -> None:
    assert "<title>VoxScale &lt;demo&gt;</title>" in made[1]
    assert "posterior &lt;b&gt;" in made[1]
    assert "posterior <b>" not in made[1]
    assert "NaN or &lt;infinite&gt;" in made[1]


def test_page_tells_no_paths(made: tuple[Path, str]) -> None:
    root, text = made
    words = Page(text).text
    assert '"data": "shards"' in words
    for secret in (str(root), "/secret", "place", "Jane", "DOE", "Users"):
        assert secret not in words


def test_real_scans_are_not_called_phantoms(tmp_path: Path) -> None:
    inputs = replace(make_run(tmp_path, size=12), synthetic=False)
    assert "phantom" not in write_report(tmp_path / "out", inputs).read_text()


def test_summary_holds_counts_arms_and_cost(made: tuple[Path, str]) -> None:
    summary = json.loads((made[0] / "out" / "summary.json").read_text())
    results = make_results()
    assert summary["volumes"] == {
        "found": 11,
        "accepted": 8,
        "rejected": 2,
        "quarantined": 1,
        "stores": {
            "data": {"found": 7, "accepted": 4, "rejected": 2, "quarantined": 1},
            "task": {"found": 4, "accepted": 4, "rejected": 0, "quarantined": 0},
        },
    }
    for part in ("scratch", "pretrained", "difference"):
        assert summary[part] == results["summary"][part]
    assert summary["seconds"] == {"ingest": 12.5, "pack": 3.0, "pretrain": 240.0, "finetune": 400.0}
    assert (summary["peak_rss_gb"], summary["config_hash"]) == (3.4, "0123456789ab")


@pytest.mark.parametrize(
    ("change", "p_value", "wanted"),
    [
        (
            (0.07, 0.03, 0.11),
            0.001,
            "Pretraining raised mean Dice from 0.61 to 0.68"
            " (difference +0.07, 95 % interval 0.03 to 0.11, p = 0.001, 12 cases).",
        ),
        (
            (0.01, -0.02, 0.04),
            0.4,
            "Pretraining did not change mean Dice measurably: 0.61 from scratch, 0.62 pretrained"
            " (difference +0.01, 95 % interval -0.02 to 0.04, p = 0.4, 12 cases).",
        ),
        (
            (-0.07, -0.11, -0.03),
            0.0001,
            "Pretraining lowered mean Dice from 0.61 to 0.54"
            " (difference -0.07, 95 % interval -0.11 to -0.03, p < 0.001, 12 cases).",
        ),
        (  # two decimals would read as an interval from 0.00
            (0.07, 0.003, 0.11),
            0.04,
            "Pretraining raised mean Dice from 0.610 to 0.680"
            " (difference +0.070, 95 % interval 0.003 to 0.110, p = 0.04, 12 cases).",
        ),
        (  # an interval that ends at zero includes it
            (0.07, 0.0, 0.11),
            0.06,
            "Pretraining did not change mean Dice measurably: 0.61 from scratch, 0.68 pretrained"
            " (difference +0.07, 95 % interval 0.00 to 0.11, p = 0.06, 12 cases).",
        ),
    ],
)
def test_sentence_says_what_interval_and_test_say(change: Any, p_value: float, wanted: str) -> None:
    assert sentence(make_results(change, p_value)) == wanted


def test_headline_writes_true_minus_signs() -> None:
    results = make_results((-0.07, -0.11, -0.03))
    assert f"difference {MINUS}0.07" in headline_section(results, {"accepted": 1, "found": 1}, "1 s").lead


@pytest.mark.parametrize("change", [(0.07, 0.03, 0.11), (-0.07, -0.11, -0.03)])
@pytest.mark.parametrize(("p_value", "shown"), [(0.049, True), (0.05, False), (0.2, False)])
def test_sentence_claims_no_change_that_the_test_does_not_bear_out(
    change: tuple[float, float, float], p_value: float, shown: bool
) -> None:
    found = sentence(make_results(change, p_value))
    assert found.startswith("Pretraining did not change mean Dice measurably: 0.61 from scratch") != shown
    assert found.startswith(f"Pretraining {'raised' if change[0] > 0 else 'lowered'} mean Dice from 0.61 to") == shown


def test_a_test_without_the_interval_claims_no_change_either() -> None:
    found = sentence(make_results((0.01, -0.02, 0.04), 0.04))
    assert found.startswith("Pretraining did not change mean Dice measurably")


@pytest.mark.parametrize("bounds", [(-0.013, -0.002), (0.002, 0.013), (-0.011, 0.004)])
@pytest.mark.parametrize("least_p", [0.05, 0.25])
def test_sentence_says_when_there_are_too_few_cases_to_tell(bounds: tuple[float, float], least_p: float) -> None:
    results = make_results((-0.007, *bounds), least_p)
    results["summary"]["difference"] |= {"least_p": least_p, "n_cases": 3}
    low, high = (f"{bound:.3f}" for bound in bounds)
    assert sentence(results) == (
        "Too few cases to tell whether pretraining helped: mean Dice 0.610 from scratch, 0.603 pretrained"
        f" (difference -0.007, 95 % interval {low} to {high}, p = {least_p:g}, 3 cases)."
    )


def test_equal_results_of_many_cases_are_no_change() -> None:
    results = make_results((0.0, 0.0, 0.0), 1.0)
    results["summary"]["difference"]["least_p"] = 1.0  # zeros cannot tell patterns apart
    assert sentence(results).startswith("Pretraining did not change mean Dice measurably")


def test_sentence_of_a_single_case_claims_nothing() -> None:
    results = make_results()
    results["summary"]["difference"] |= {"ci95": [None, None], "n_cases": 1, "p_value": 1.0, "least_p": 1.0}
    assert sentence(results).startswith("Too few cases to tell whether pretraining helped: mean Dice 0.61 from scratch")
    assert sentence(results).endswith("(difference +0.07, no interval: too few cases, p = 1, 1 case).")


def test_headline_tiles_and_summary_tell_the_same(tmp_path: Path) -> None:
    results = make_results((-0.007, -0.013, -0.002), 0.25)
    results["summary"]["difference"] |= {"least_p": 0.25, "n_cases": 3, "n_subjects": 3}
    text = write_report(tmp_path / "out", make_run(tmp_path, size=12, results=results)).read_text()
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["sentence"]
    assert told == sentence(results)
    assert told.startswith("Too few cases to tell")
    words = Page(text).text
    assert re.sub(r"\s+", " ", told.replace("-", MINUS)) in words
    assert f"Difference {MINUS}0.007 {MINUS}0.013 to {MINUS}0.002, p = 0.25" in words
    assert not re.search("raised|lowered", words)


def test_fine_print_tells_test_cases_folds_and_seeds() -> None:
    results = make_results() | {"seeds": [0, 7]}
    assert fine_print(results) == (
        "Paired sign-flip test over cases: p = 0.001; least p attainable with so many cases: 0.0005."
        " 12 cases (one per subject), 4 folds, 2 seeds (0, 7), 120 steps per fold and arm."
    )
    results["summary"]["difference"]["n_subjects"] = 12
    assert "12 cases (one per subject), 4 folds" in fine_print(results)


def test_cases_of_one_subject_are_told_apart_from_subjects() -> None:
    results = make_results()
    results["summary"]["difference"] |= {"n_subjects": 5, "least_p": 0.0625}
    assert fine_print(results) == (
        "Paired sign-flip test over subjects: p = 0.001; least p attainable with so many subjects: 0.062."
        " 12 cases of 5 subjects, 4 folds, 1 seed (0), 120 steps per fold and arm."
        " Cases of one subject are averaged before means, intervals and test."
    )
    assert fine_print(results) in result_section(results).html
    weighs = "which weighs a subject by its number of cases"
    assert weighs in result_section(results).html
    assert weighs not in result_section(make_results()).html
    assert "12 cases of 5 subjects)." in sentence(results)
    assert "12 labelled cases of 5 subjects" in limits_section(results, False).html
    results["summary"]["difference"]["n_subjects"] = 1
    assert "12 cases of 1 subject, 4 folds" in fine_print(results)


@pytest.mark.parametrize(
    ("manifest", "wanted"),
    [
        ({}, "0 unlabelled scans that are also in the task were left out of pretraining."),
        ({"in_task": 1}, "1 unlabelled scan that is also in the task was left out of pretraining."),
        ({"in_task": 3}, "3 unlabelled scans that are also in the task were left out of pretraining."),
    ],
)
def test_scans_left_out_of_pretraining_are_counted(manifest: dict[str, int], wanted: str) -> None:
    assert left_out_text(manifest) == wanted


@pytest.mark.parametrize(("in_task", "sections"), [(None, ["data"]), (0, ["data"]), (2, ["result", "data"])])
def test_scans_left_out_are_told_near_the_result_if_there_are_any(
    tmp_path: Path, in_task: int | None, sections: list[str]
) -> None:
    inputs = make_run(tmp_path, size=12)
    file = inputs.shards / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ({} if in_task is None else {"in_task": in_task})))
    text = write_report(tmp_path / "out", inputs).read_text()
    parts = re.findall(r'<section id="([^"]*)".*?</section>', text, flags=re.DOTALL)
    told = f"{in_task or 0} unlabelled scans that are also in the task were left out of pretraining"
    bodies = re.findall(r"<section .*?</section>", text, flags=re.DOTALL)
    assert [name for name, body in zip(parts, bodies, strict=True) if told in body] == sections


def test_limits_tell_what_dice_does_not_count() -> None:
    html = limits_section(make_results(), False).html
    assert "A label predicted in a case whose reference does not show it is not counted against either arm" in html
    assert "cases without any labelled voxel are refused at ingest" in html


def test_watched_figures_do_not_squeeze_the_losses(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", 30, 2.0, 0.9)
    html = curves_section(tmp_path, tmp_path / "none", ()).html
    losses, watched = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert "pretext" not in losses
    assert {"loss", "dice", "ce"} <= set(re.findall(r">([^<>]+)</text>", losses))
    assert {"pretext accuracy", "pretext dice"} <= set(re.findall(r">([^<>]+)</text>", watched))
    assert "pretext accuracy 0.73, pretext dice 0.50" in watched
    assert "pretext_" not in html


def test_a_run_that_watches_nothing_has_no_chart_of_it(tmp_path: Path) -> None:
    append_line(tmp_path / "metrics.jsonl", {"step": 10, "loss": 1.0, "lr": 0.1})
    assert curves_section(tmp_path, tmp_path / "none", ()).html.count("<svg") == 1


def test_three_decimals_where_two_do_not_add_up() -> None:
    results = make_results()
    results["summary"]["scratch"]["dice_mean"], results["summary"]["pretrained"]["dice_mean"] = 0.614, 0.686
    results["summary"]["difference"]["dice_mean"] = 0.072  # 0.61 to 0.69 is not +0.07
    assert "from 0.614 to 0.686 (difference +0.072" in sentence(results)


def test_result_table_lines_up_in_plain_text() -> None:
    results = make_results((-0.07, -0.11, -0.03))
    lines = result_table(results).splitlines()
    assert lines[0].split() == ["Dice", "scratch", "pretrained", "difference", "95", "%", "interval"]
    assert lines[2].split() == ["anterior", "0.621", "0.551", "-0.059", "-0.099", "to", "-0.019"]
    assert lines[5].split() == ["mean", "0.610", "0.540", "-0.070", "-0.110", "to", "-0.030"]
    assert len({len(line) for line in lines}) == 1
    assert "\n".join(lines).isascii()
    assert sentence(results).isascii()


def test_result_table_marks_a_label_nobody_has() -> None:
    results = make_results()
    for part in results["summary"].values():
        part["per_label"]["2"] = {"dice_mean": None, "ci95": None}
    assert result_table(results).splitlines()[3].split()[-4:] == ["-", "-", "-", "-"]


def test_case_scores_leave_out_absent_labels_and_average_seeds() -> None:
    rows = [
        {"case": "a", "arm": "scratch", "seed": 0, "dice": {"1": 0.4, "2": None}},
        {"case": "a", "arm": "scratch", "seed": 1, "dice": {"1": 0.6, "2": 0.8}},
        {"case": "a", "arm": "pretrained", "seed": 0, "dice": {"1": 1.0, "2": 0.5}},
        {"case": "b", "arm": "scratch", "seed": 0, "dice": {"1": 0.4}},
        {"case": "c", "arm": "scratch", "seed": 0, "dice": {"1": None}},
    ]
    assert case_scores({"cases": rows}) == {"a": {"scratch": pytest.approx(0.55), "pretrained": 0.75}}


def test_pictures_show_the_best_median_and_worst_case(made: tuple[Path, str]) -> None:
    headings = re.findall(r"<h3>(\w+) difference: (\S+) \(case b0*([0-9a-f]+|0)\)</h3>", made[1])
    # Case n gains 0.07 + 0.01 * (n - 5.5): the last gains most, the first least.
    assert headings == [("Best", "+0.125", "b"), ("Median", "+0.065", "5"), ("Worst", "+0.015", "0")]


def test_a_disagreement_of_interval_and_test_is_told() -> None:
    told = "Interval and test do not agree"
    assert told in result_section(make_results(p_value=0.2)).html
    assert told in result_section(make_results((0.01, -0.02, 0.04), p_value=0.04)).html
    assert told not in result_section(make_results()).html


def test_too_few_cases_for_any_proof_is_told() -> None:
    results = make_results()
    assert "could not have fallen below" not in result_section(results).html
    results["summary"]["difference"] |= {"least_p": 0.25, "p_value": 0.25}
    assert "could not have fallen below p = 0.05" in result_section(results).html


def test_a_single_case_has_no_forest() -> None:
    results = make_results()
    for part in (results["summary"]["difference"], *results["summary"]["difference"]["per_label"].values()):
        part["ci95"] = [None, None]
    section = result_section(results)
    assert section.html.count("<svg") == 1
    assert MISSING in section.html


def test_a_run_without_previews_says_so(tmp_path: Path) -> None:
    inputs = make_run(tmp_path, size=12)
    (inputs.pretrain_run / "preview.npz").unlink()
    shutil.rmtree(inputs.finetune_run / "previews")
    text = write_report(tmp_path / "out", inputs).read_text()
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == SECTIONS
    assert text.count("were saved.") + text.count("was saved.") == 2


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{")])
def test_a_missing_or_broken_result_is_named(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    inputs = make_run(tmp_path, size=12)
    spoil(inputs.finetune_run / "results.json")
    with pytest.raises(DataError, match=r"report.results.json must be a readable JSON file") as found:
        write_report(tmp_path / "out", inputs)
    assert str(tmp_path) not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_strip_paths_keeps_names_and_numbers() -> None:
    assert strip_paths({"a": "/x/y.tar", "b": ["C:\\u\\v", 3, None], "c": {"d": "plain", "e": "out/"}}) == {
        "a": "y.tar",
        "b": ["v", 3, None],
        "c": {"d": "plain", "e": "out"},
    }


def test_a_preview_shows_the_objectives_that_were_trained(tmp_path: Path) -> None:
    crop = np.linspace(0, 1, 8**3, dtype=np.float32).reshape(8, 8, 8)
    masked = dict.fromkeys(("masked_whole", "masked_visible", "masked_told"), crop)
    np.savez(tmp_path / "preview.npz", **masked, spacing=(1.0, 1.0, 1.0))
    section = pretext_section(tmp_path)
    assert section.html.count("<img") == 3
    assert "Hidden blocks as the network tells them" in section.html
    assert "Blocks of a crop are hidden" in section.html
    label, guess = np.zeros((2, 8, 8, 8), np.uint8)
    label[2:4], guess[2:3] = 1, 1
    own = {"supervised_image": crop, "supervised_label": label, "supervised_prediction": guess}
    np.savez(tmp_path / "preview.npz", **own, spacing=(1.0, 1.0, 1.0))
    section = pretext_section(tmp_path)
    assert section.html.count("<img") == 3
    assert "50% of the labelled voxels" in section.html
    np.savez(tmp_path / "preview.npz", spacing=(1.0, 1.0, 1.0))
    assert "make no pictures" in pretext_section(tmp_path).html


def test_features_neighbours_and_ready_pictures_are_shown_and_a_solved_task_is_told(tmp_path: Path) -> None:
    crop = np.linspace(0, 1, 8 * 6 * 4, dtype=np.float32).reshape(8, 6, 4)
    arrays = {"features_image_0": crop, "features_colours_0": np.full((8, 6, 4, 3), 90, np.uint8)}
    arrays |= {"neighbours": np.zeros((2, 3, 6, 4), np.float32)}
    arrays |= {"graph_matching_matched_nodes": np.zeros((20, 30, 3), np.uint8)}
    np.savez(tmp_path / "preview.npz", **arrays, spacing=(2.0, 1.0, 1.0))
    section = pretext_section(tmp_path)
    assert section.html.count("<img") == 4
    assert "Samples of one graph" in section.html
    assert "solved" not in section.html
    fused = dict.fromkeys(("background", "foreground", "fused"), crop)
    levels = dict.fromkeys(("label", "prediction"), np.ones((8, 6, 4), np.uint8))
    np.savez(tmp_path / "preview.npz", **fused, **levels, spacing=(2.0, 1.0, 1.0))
    for step in range(10):
        append_line(tmp_path / "metrics.jsonl", {"step": step, "pretext_dice": 0.5 if step < 3 else 0.97})
    assert "solved since step 3 (Dice 0.970)" in pretext_section(tmp_path).html


def probe_rows() -> list[dict[str, float]]:
    rows = []
    for place, dice in enumerate((0.2, 0.3, 0.4, 0.5, 0.6)):
        name = "probe/decoder/linear_dice"
        row = {"step": 10 * place, name: dice, f"{name}.shuffled_labels": 0.1, f"{name}.untrained": 0.2}
        row |= {f"{name}.low": dice - 0.1, f"{name}.high": dice + 0.1, f"{name}.gain": dice - 0.2}
        row |= {
            "probe/embedding/std": 0.5 if place < 3 else 0.01,
            "probe/encoder/effective_rank": 60 - 40 * (place > 0),
            "probe/encoder/landmark_mm": 12 - 2 * place,
            "probe/encoder/landmark_mm.shuffled_features": 13,
            "probe/embedding/compose_gap": 0.6,
            "probe/embedding/compose_gap.shuffled_features": 0.04,
        }
        head = "probe/volume_fusion/levels_entropy"
        row |= {f"{head}.shuffled_features": 0.87, f"{head}.low": 0.42, f"{head}.high": 0.58}
        rows.append(row | {head: 0.5, f"{head}.untrained": 0.99, "probe/volume_fusion/levels_usage": 0.9})
    return rows


def test_probes_are_drawn_with_a_sentence_for_each_and_left_out_where_there_are_none(tmp_path: Path) -> None:
    assert probes_section(tmp_path) is None
    for row in probe_rows():
        append_line(tmp_path / "metrics.jsonl", row)
    section = probes_section(tmp_path)
    assert section is not None
    assert "Decoder, linear Dice: rising." in section.html
    assert "Embedding, deviation: collapsed after step 20." in section.html
    assert "Encoder, effective rank: flat since step 10." in section.html  # below the untrained network's, but steady
    assert "levels entropy:" not in section.html
    assert "Encoder, landmark error (mm): getting better." in section.html
    assert "Embedding, compose gap: flat since step 0." in section.html
    assert "places shuffled 13" in section.html
    assert section.html.count("<svg") == 6
    heads = "levels entropy 0.50, volume fusion, levels usage 0.90, volume fusion, levels entropy, shuffled 0.87"
    assert heads in section.html  # of the usage this run has no control
    assert "0.420 to 0.580" in section.html
    assert "0.990" in section.html
    assert "0.500 to 0.700" in section.html
    assert "+0.400" in section.html
    assert what_it_does(probe_rows()[:2], "decoder/linear_dice").kind == "unknown"
