import base64
import re
import shutil
import subprocess
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxscale.report import charts, page
from voxscale.report.page import Section, render_page
from voxscale.report.planes import three_planes
from voxscale.report.table import table

PHONE = 390
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def wide_page() -> str:
    """A page with every part that could be wider than a phone."""
    row = ["a_name_without_any_break_" * 5, *["0.123 to 0.456"] * 12]
    png = three_planes(np.zeros((4, 4, 4)), (1.0, 1.0, 1.0))
    svg = charts.strips({"z": [1.0]}, name="s", title="Spacing", unit="mm", alt="one")
    parts = [
        table("Wide", ["x"] * 13, [row]),
        page.grid([page.picture(png, "a"), page.chart(svg, "c" * 200)]),
        page.tiles([("10 min 56 s", "Time", "t" * 90)] * 5),
        page.code({"key": "v" * 400}),
        page.folded("s" * 300, page.code({"key": "v" * 400})),
        page.legend([("n" * 200, "#000000")] * 4),
        page.paragraph("w" * 500) + page.heading("h" * 300) + page.bullets(["b" * 300]),
    ]
    return render_page("T" * 200, [Section("A" * 100, "".join(parts), "l" * 300)], notice="n" * 300, footer="f" * 300)


def scroll_width(text: str, folder: Path) -> int:
    """Width that the page wants when a browser gives it that of a phone."""
    frame = f'<iframe srcdoc="{escape(text)}" style="width:{PHONE}px;height:800px;border:0"></iframe>'
    script = "onload = () => document.title = frames[0].document.documentElement.scrollWidth + ' px'"
    (folder / "frame.html").write_text(f"<!doctype html><title></title>{frame}<script>{script}</script>")
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    flags += f" --disable-sync --no-first-run --hide-scrollbars --user-data-dir={folder / 'profile'} --dump-dom"
    command = [str(BROWSER), *flags.split(), (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(\d+) px</title>", done.stdout)
    assert found is not None
    return int(found[1])


def rules(css: str) -> dict[str, str]:
    """Declarations of every rule outside of media queries."""
    plain = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", css)
    found: dict[str, str] = {}
    for names, body in re.findall(r"([^{}]+)\{([^{}]*)\}", plain):
        for name in names.split(","):
            found[name.strip()] = found.get(name.strip(), "") + body
    return found


def test_a_phone_never_scrolls_the_page_sideways(tmp_path: Path) -> None:
    style = rules(files("voxscale.report").joinpath("style.css").read_text())
    assert "overflow-x: auto" in style[".scroll"]
    assert "overflow: auto" in style["pre"]
    assert "overflow-wrap: anywhere" in style["body"]
    for name in ("main", ".grid > *"):
        assert "min-width: 0" in style[name]
    for name in (".planes img", ".chart svg"):
        assert "width: 100%" in style[name]
    assert not any("min-width: 4" in body or "\n  width: " in body for body in style.values())
    text = wide_page()
    assert text.count("<table>") == text.count('<div class="scroll"')
    if BROWSER is not None:
        assert scroll_width(text, tmp_path) == PHONE


def test_page_escapes_title_notice_lead_and_footer() -> None:
    text = render_page("a<b", [Section("S & <i>", "<p>kept</p>", "x < y")], notice="<u>", footer="<s>")
    assert "<title>a&lt;b</title>" in text
    assert "<h1>a&lt;b</h1>" in text
    assert "S &amp; &lt;i&gt;</h2>" in text
    assert '<p class="lead">x &lt; y</p>' in text
    assert "&lt;u&gt;</p></header>" in text
    assert "&lt;s&gt;</p></footer>" in text
    assert "<p>kept</p>" in text
    for tag in ("<b", "<i>", "<u>", "<s>"):
        assert tag not in text.replace("<body", "")


def test_contents_lead_to_the_sections() -> None:
    text = render_page("t", [Section("What this is not", ""), Section("Data", "")])
    assert '<a href="#what-this-is-not">What this is not</a>' in text
    assert '<section id="what-this-is-not" aria-labelledby="what-this-is-not-title">' in text
    assert "notice" not in text.split("</style>")[1]


def test_a_bracket_that_ends_the_lead_is_set_apart() -> None:
    text = render_page("t", [Section("s", "", "It rose (difference +0.07, p < 0.001).")])
    assert "It rose <span>(difference +0.07, p &lt; 0.001).</span></p>" in text


def test_picture_carries_its_bytes_and_size() -> None:
    out = BytesIO()
    Image.new("L", (7, 5)).save(out, format="PNG")
    html = page.picture(out.getvalue(), 'say "aah"', "a < b")
    data = re.search(r'src="data:image/png;base64,([^"]*)"', html)
    assert data is not None
    assert base64.b64decode(data[1]) == out.getvalue()
    assert 'width="7" height="5"' in html
    assert 'alt="say &quot;aah&quot;"' in html
    assert "<figcaption>a &lt; b</figcaption>" in html


@pytest.mark.parametrize(
    "html",
    [
        page.paragraph("<x>"),
        page.paragraph("<x>", "note"),
        page.heading("<x>"),
        page.tiles([("<x>", "<x>", "<x>")]),
        page.legend([("<x>", '"><x>')]),
        page.folded("<x>", ""),
        page.code({"<x>": "<x>"}),
        page.bullets(["<x>"]),
        page.chart("", "<x>"),
    ],
)
def test_parts_escape_their_words(html: str) -> None:
    assert "<x>" not in html
    assert "&lt;x&gt;" in html


def test_class_legend_uses_the_colours_of_the_planes_and_owns_up_to_the_rest() -> None:
    html = page.class_legend({2: "b", 1: "a"})
    assert re.findall(r"background:(#\w+)\"></span>(\w+)", html) == [("#E69F00", "a"), ("#56B4E9", "b")]
    assert page.class_legend({value: f"n{value}" for value in range(1, 62)}).endswith("</span>and 49 more</li></ul>")


def test_code_is_json_that_keeps_letters() -> None:
    assert "{\n  &quot;a&quot;: [\n    1\n  ],\n  &quot;b&quot;: &quot;é&quot;\n}" in page.code({"b": "é", "a": [1]})


def test_text_has_enough_contrast() -> None:
    style = files("voxscale.report").joinpath("style.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", style))

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for front in ("ink", "soft", "accent"):
        for back in ("ground", "card"):
            ratio = (luminance(colours[back]) + 0.05) / (luminance(colours[front]) + 0.05)
            assert ratio >= 4.5, (front, back)  # WCAG 2.2, success criterion 1.4.3
