import json

import pytest

from launch.study_table import Study, markdown, summary, write_study


def rows(arm, seed, scores):
    return [
        {"case": f"c{n}", "subject": f"s{n}", "fold": n % 2, "seed": seed, "arm": arm, "dice": {"1": score}}
        for n, score in enumerate(scores)
    ]


@pytest.fixture
def study():
    """Eight subjects: one start is better in all of them, the other now better and now worse."""
    made = Study("heart", steps=5, folds=2, machine={"cpu": "x", "cores": 2, "commit": "c"}, classes={"1": "all"})
    base = [0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65]
    for seed in (0, 1):
        better = [score + 0.1 + 0.01 * seed + 0.002 * n for n, score in enumerate(base)]
        mixed = [score + (0.05 if n % 2 else -0.05) for n, score in enumerate(base)]
        found = {
            "scratch": rows("scratch", seed, base),
            "good": rows("pretrained", seed, better),
            "mixed": rows("pretrained", seed, mixed),
        }
        for name in ("good", "mixed"):
            made.pretrained(name, 60.0, steps=7, batch=3)
        for name, each in found.items():
            made.add(2, name, seed, each, 30.0 + seed)
    return made


def test_differences_tests_and_corrections_by_hand(study):
    found = summary(study)
    scratch, good, mixed = found["cells"]
    assert scratch["dice_mean"] == pytest.approx(0.475)
    assert "difference" not in scratch
    assert good["difference"]["dice_mean"] == pytest.approx(0.105 + 0.007)
    assert good["difference"]["by_seed"] == pytest.approx([0.107, 0.117])
    assert (good["difference"]["n_cases"], good["difference"]["n_seeds"]) == (8, 2)
    # All eight point one way: two of 2^8 sign patterns are as far out; of two tests the smaller p counts twice.
    assert good["difference"]["p_value"] == pytest.approx(2 / 2**8)
    assert good["difference"]["p_holm"] == pytest.approx(4 / 2**8)
    assert mixed["difference"]["dice_mean"] == pytest.approx(0.0)
    assert mixed["difference"]["p_holm"] == 1.0
    assert good["seconds"] == [30.0, 31.0]
    assert found["pretraining"]["good"] == {"steps": 7, "batch": 3, "seconds": [60.0, 60.0]}


def test_files_say_the_same(study, tmp_path):
    page = write_study(tmp_path, study)
    text = (tmp_path / "study.md").read_text()
    assert text == markdown(json.loads((tmp_path / "study.json").read_text()))
    assert "1 of 2 comparisons with training from scratch differ: good with 2 subjects (+0.112)." in text
    assert "| 2 | mixed | 0.475 |" in text
    html = page.read_text()
    assert "1 of 2 comparisons with training from scratch show a difference" in html
    assert "good with 2 subjects" in html
    assert html.count("<svg") == 1


def test_where_nothing_differs_the_page_says_so(study):
    del study.rows[2]["good"]
    assert "None of 1 comparisons with training from scratch shows a difference." in markdown(summary(study))


def test_a_table_of_what_is_done_compares_the_seeds_that_both_have(study):
    del study.rows[2]["scratch"][0]
    study.missing = {"tune-scratch-2-0": "not reached within the time limit"}
    scratch, good, _ = summary(study)["cells"]
    assert (scratch["seeds"], good["seeds"]) == ([1], [0, 1])
    assert good["difference"]["by_seed"] == pytest.approx([0.117])
    assert good["difference"]["dice_mean"] == pytest.approx(0.117)
    assert good["dice_mean"] == pytest.approx(0.475 + 0.112)  # its own Dice is of both seeds
    assert "Missing: tune-scratch-2-0 (not reached within the time limit)." in markdown(summary(study))
    del study.rows[2]["scratch"]
    assert all("difference" not in cell for cell in summary(study)["cells"])
    assert "None of 0 comparisons" in markdown(summary(study))


def test_structures_have_differences_of_their_own(study):
    for starts in study.rows[2].values():
        for rows_ in starts.values():
            for row in rows_:
                row["dice"]["2"] = 0.5
    study.classes = {"1": "front", "2": "back"}
    text = markdown(summary(study))
    assert "| 2 | good | front | 0.587 |" in text
    assert "| 2 | good | back | 0.500 | 0.500 to 0.500 | 0.000 | 0.000 to 0.000 |" in text


def test_beyond_a_control_only_what_is_better_than_it_stands(study):
    assert "beyond_control" not in summary(study)["cells"][1]
    base = study.rows[2]["scratch"]
    for seed in (0, 1):
        scores = [row["dice"]["1"] + 0.105 + 0.01 * seed for row in base[seed]]
        study.pretrained("nothing", 60.0, steps=7, batch=3)
        study.add(2, "nothing", seed, rows("pretrained", seed, scores), 30.0)
    study.control = "nothing"
    found = summary(study)
    cells = {cell["start"]: cell for cell in found["cells"]}
    # `good` is ahead by 0.1 + 0.01 seed + 0.002 n: of that the control has 0.105 + 0.01 seed.
    assert cells["good"]["beyond_control"]["by_seed"] == pytest.approx([0.002, 0.002])
    smaller = cells["mixed"]["beyond_control"]
    assert smaller["p_holm"] == pytest.approx(2 * smaller["p_value"]) == pytest.approx(4 / 2**8)
    assert cells["mixed"]["beyond_control"]["dice_mean"] == pytest.approx(-0.11)
    assert all("beyond_control" not in cells[name] for name in ("nothing", "scratch"))
    text = markdown(found)
    assert "| 2 | good | +0.002 |" in text
    assert (
        "1 of 2 comparisons with the control nothing, a pretraining with nothing to learn, differ: mixed with" in text
    )


def test_the_page_shows_differences_to_the_control(study, tmp_path):
    study.control = "mixed"
    html = write_study(tmp_path, study).read_text()
    assert "Beyond mixed" in html
    assert "scratch and 1 of 1 comparisons with the control mixed show a difference" in html
