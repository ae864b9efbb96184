import re

import pytest

from voxscale.report.table import MINUS, MISSING, decimal, duration, interval, p_text, quantity, table


@pytest.mark.parametrize(
    ("value", "digits", "sign", "wanted"),
    [
        (0.6149, 3, False, "0.615"),
        (0.07, 2, True, "+0.07"),
        (-0.07, 2, True, MINUS + "0.07"),
        (-0.0004, 2, True, "0.00"),
        (0.0004, 3, True, "0.000"),
        (0.0, 1, True, "0.0"),
        (None, 2, False, MISSING),
        (float("nan"), 2, False, MISSING),
    ],
)
def test_decimal(value: float | None, digits: int, sign: bool, wanted: str) -> None:
    assert decimal(value, digits, sign) == wanted


def test_interval_is_missing_when_a_bound_is() -> None:
    assert interval((-0.021, 0.044), 2) == f"{MINUS}0.02 to 0.04"
    assert interval([0.1, None]) == interval([float("nan"), 1.0]) == interval(None) == MISSING


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.001, "p = 0.001"),
        (0.03125, "p = 0.031"),
        (0.00099, "p < 0.001"),
        (0.0496, "p = 0.0496"),
        (0.05, "p = 0.05"),
        (1.0, "p = 1"),
        (None, "p not available"),
        (float("nan"), "p not available"),
    ],
)
def test_p_text(value: float | None, wanted: str) -> None:
    assert p_text(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(3, "3"), (3.25, "3.25"), (950.4, "950"), (9999, "9999"), (12_345, "12.3 k"), (2.5e6, "2.5 M"), (7.1e9, "7.1 G")],
)
def test_quantity(value: float, wanted: str) -> None:
    assert quantity(value) == wanted
    assert quantity(None) == quantity(float("nan")) == MISSING


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185.4, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7830, "2 h 10 min"),
    ],
)
def test_duration(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted


def test_table_aligns_figures_and_escapes_words() -> None:
    html = table(
        "Dice & more", ["Label", "Dice", "Note"], [["<b>", "0.6", "a"], ["mean", "0.7", "b"]], text=(0, 2), strong=[1]
    )
    assert "<caption>Dice &amp; more</caption>" in html
    assert 'aria-label="Dice &amp; more"' in html
    assert '<th scope="col">Label</th><th scope="col" class="figure">Dice</th><th scope="col">Note</th>' in html
    assert '<tr><th scope="row">&lt;b&gt;</th><td class="figure">0.6</td><td>a</td></tr>' in html
    assert '<tr class="strong"><th scope="row">mean</th><td class="figure">0.7</td><td>b</td></tr>' in html
    assert re.fullmatch(r'<div class="scroll".*</div>', html, re.DOTALL)
