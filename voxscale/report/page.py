"""One self-contained HTML page from sections: inline style, inline pictures, nothing fetched."""

import base64
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from voxscale.report.planes import colour_of

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy of the page: the browser itself refuses to fetch anything."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page.

    Attributes:
        title: Plain text, escaped when the page is rendered.
        html: Content, already escaped by those who made it.
        lead: Plain sentence under the title, escaped when the page is rendered.
    """

    title: str
    html: str
    lead: str = ""

    @property
    def anchor(self) -> str:
        """Name for links within the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render_page(title: str, sections: Sequence[Section], *, notice: str = "", footer: str = "") -> str:
    """Put sections under one title, with a table of contents.

    Args:
        title: Plain text.
        sections: In reading order; the lead of the first is set large, as the headline.
        notice: Plain sentence that must not be missed, set apart under the title.
        footer: Plain text at the end.
    """
    style = files("voxscale.report").joinpath("style.css").read_text(encoding="utf-8")
    contents = "\n".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(_section(s) for s in sections)
    aside = f'<p class="notice" role="note">{escape(notice)}</p>' if notice else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header><h1>{escape(title)}</h1>{aside}</header>
<div class="layout">
<nav aria-label="Contents"><ol>
{contents}
</ol></nav>
<main id="main">
{body}
</main>
</div>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""


def _section(section: Section) -> str:
    # A bracket that ends the lead is set lighter: in a headline the evidence stands back behind the finding.
    text = re.sub(r" (\([^()]*\)\.)$", r" <span>\1</span>", escape(section.lead))
    lead = f'<p class="lead">{text}</p>\n' if text else ""
    return (
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">\n'
        f'<h2 id="{section.anchor}-title">{escape(section.title)}</h2>\n{lead}{section.html}\n</section>'
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` may be `note`."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def picture(png: bytes, alt: str, caption: str = "") -> str:
    """A PNG as a figure on a dark ground, carried inside the page."""
    width, height = struct.unpack(">II", png[16:24])  # IHDR is always the first chunk
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="planes"><img src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">{below}</figure>'
    )


def chart(svg: str, caption: str = "") -> str:
    """An SVG of `voxscale.report.charts` as a figure."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="chart">{svg}{below}</figure>'


def thumbnails(items: Iterable[tuple[bytes, str]]) -> str:
    """Small pictures in rows; each item is (PNG, caption)."""
    cells: list[str] = []
    for png, caption in items:
        width, height = struct.unpack(">II", png[16:24])
        data = base64.b64encode(png).decode()
        cells.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="" width="{width}" height="{height}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return '<div class="thumbs">' + "\n".join(cells) + "</div>"


def grid(parts: Iterable[str], kind: str = "two") -> str:
    """Parts side by side where there is room, else below one another; `kind` is `two` or `three`."""
    return f'<div class="grid {escape(kind)}">\n' + "\n".join(parts) + "\n</div>"


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Big figures in a row; each item is (figure, what it is, small print)."""
    cells = "\n".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd><dd>{escape(more)}</dd></div>'
        for value, name, more in items
    )
    return f'<dl class="tiles">\n{cells}\n</dl>'


def legend(items: Iterable[tuple[str, str]]) -> str:
    """What each colour means; each item is (name, colour as #rrggbb)."""
    entries = "".join(
        f'<li><span class="swatch" style="background:{escape(colour)}"></span>{escape(name)}</li>'
        for name, colour in items
    )
    return f'<ul class="legend">{entries}</ul>'


def class_legend(classes: Mapping[int, str], most: int = 12) -> str:
    """Colours of label values as `voxscale.report.planes` draws them; past `most` only how many more there are."""
    items = [(classes[value], colour_of(value)) for value in sorted(classes)]
    more = [(f"and {len(items) - most} more", "#ffffff")] if len(items) > most else []
    return legend(items[:most] + more)


def folded(summary: str, html: str) -> str:
    """Details that a click opens; without a script."""
    return f"<details><summary>{escape(summary)}</summary>\n{html}\n</details>"


def code(value: object) -> str:
    """Plain values as indented JSON."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'


def bullets(items: Iterable[str]) -> str:
    """A list of plain sentences."""
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"
