import pytest

from finetune.results import chosen
from finetune.summary import by_case, summarise


def row(case, arm, one, two, seed=0):
    return {"case": case, "subject": case, "fold": 0, "seed": seed, "arm": arm, "dice": {"1": one, "2": two}}


ROWS = [
    row("a", "scratch", 0.5, 0.7),
    row("a", "pretrained", 0.7, 0.9),
    row("b", "scratch", 0.4, None),
    row("b", "pretrained", 0.5, None),
    row("c", "scratch", 0.2, 0.2),
    row("c", "scratch", 0.4, 0.4, seed=1),
    row("c", "pretrained", 0.3, 0.1),
    row("c", "pretrained", 0.3, 0.1, seed=1),
]


def test_labels_are_averaged_first_then_seeds_then_cases():
    assert by_case(ROWS, "scratch", None) == pytest.approx({"a": 0.6, "b": 0.4, "c": 0.3})
    assert by_case(ROWS, "scratch", "2") == pytest.approx({"a": 0.7, "c": 0.3})
    found = summarise(ROWS, ["1", "2"], [0, 1])
    assert found["scratch"]["dice_mean"] == pytest.approx((0.6 + 0.4 + 0.3) / 3)
    assert found["difference"]["dice_mean"] == pytest.approx((0.2 + 0.1 - 0.1) / 3)
    assert found["difference"]["per_label"]["2"]["dice_mean"] == pytest.approx((0.2 - 0.2) / 2)
    assert found["difference"]["n_cases"] == 3
    assert found["difference"]["n_seeds"] == 2
    assert found["difference"]["least_p"] == pytest.approx(2 / 2**3)
    low, high = found["difference"]["ci95"]
    assert low <= found["difference"]["dice_mean"] <= high


def test_cases_of_one_subject_count_once():
    """Three scans of one patient that all improve by 0.1 are one observation, not three."""
    rows = [
        row(case, arm, 0.5 + 0.1 * (arm == "pretrained"), None) for case in "abc" for arm in ("scratch", "pretrained")
    ]
    rows += [row("d", "scratch", 0.5, None), row("d", "pretrained", 0.4, None)]
    for found in rows:
        found["subject"] = "one" if found["case"] in "abc" else "two"
    difference = summarise(rows, ["1"], [0])["difference"]
    assert difference["n_cases"] == 4
    assert difference["n_subjects"] == 2
    assert difference["dice_mean"] == pytest.approx(0.0)
    assert difference["least_p"] == pytest.approx(0.5)


def test_a_label_that_no_case_shows_has_no_mean():
    found = summarise(ROWS, ["1", "2", "3"], [0])
    assert found["scratch"]["per_label"]["3"] == {"dice_mean": None, "ci95": [None, None]}


def test_previews_are_the_best_the_median_and_the_worst():
    assert chosen(ROWS) == {"a": "best", "b": "median", "c": "worst"}
    assert chosen(ROWS[:2]) == {"a": "best"}
