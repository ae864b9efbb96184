"""Figures as text, and HTML tables with their figures aligned to the right."""

from collections.abc import Collection, Sequence
from html import escape

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
"""Stands where there is no value, such as the Dice of a label that no case holds."""


def decimal(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number with fixed decimals and a true minus sign; `MISSING` for None and NaN.

    Args:
        value: The number.
        digits: Decimals to keep.
        sign: Whether to write a plus in front of numbers above 0.
    """
    if value is None or value != value:
        return MISSING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")  # nothing that reads as zero has a sign
    return text.replace("-", MINUS)


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """Two bounds as `low to high`, or `MISSING` where one of them is not known."""
    if bounds is None or any(b is None or b != b for b in bounds):
        return MISSING
    low, high = (decimal(b, digits) for b in bounds)
    return f"{low} to {high}"


def p_text(value: float | None) -> str:
    """A p value with its relation: `p = 0.031`, `p < 0.001`, or `p not available`."""
    if value is None or value != value:
        return "p not available"
    if value < 0.001:
        return "p < 0.001"
    digits = 3 if 0.045 <= value < 0.05 else 2  # 0.0496 must not read as 0.05
    return f"p = {value:.{digits}g}"


def quantity(value: float | None) -> str:
    """A number of things or a rate in three figures: `950`, `12.3 k`, `4.56 M`."""
    if value is None or value != value:
        return MISSING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time span in the two largest units that matter: `8.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Collection[int] = (0,),
    strong: Collection[int] = (),
) -> str:
    """An HTML table in a box of its own, which scrolls sideways where the page is narrow.

    Args:
        caption: What the table shows; also names the box for screen readers.
        head: Column titles.
        rows: Cells as plain text, escaped here; the first of each row is its heading.
        text: Columns of words, aligned to the left; all others hold figures.
        strong: Rows to set in bold, such as a mean.
    """

    def cell(tag: str, column: int, content: str) -> str:
        kind = "" if column in text else ' class="figure"'
        return f"<{tag}{kind}>{escape(content)}</{tag.split()[0]}>"

    titles = "".join(cell('th scope="col"', column, title) for column, title in enumerate(head))
    lines = [
        "".join(cell("td" if column else 'th scope="row"', column, content) for column, content in enumerate(row))
        for row in rows
    ]
    body = "\n".join(
        (f'<tr class="strong">{line}</tr>' if number in strong else f"<tr>{line}</tr>")
        for number, line in enumerate(lines)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )
