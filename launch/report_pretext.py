"""What pretraining asked and what the network made of it, in pictures: tasks, colours of features, neighbours."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.saturation import saturated_since
from voxscale.files import read_lines
from voxscale.report import page
from voxscale.report.page import Section
from voxscale.report.planes import CONVENTION, GAP, GROUND, ramp, three_planes

Arrays = Mapping[str, NDArray[Any]]
Size3 = tuple[float, float, float]

CROPS = {
    "background": "Background crop",
    "foreground": "Foreground crop",
    "fused": "Mixture: what the network sees",
}
"""Images of Volume Fusion in `preview.npz` and what the page calls them."""

FUSION = (
    "Two crops are mixed block by block, each block at its own level, from background only to foreground only."
    " The network sees the mixture alone and has to name the level at every voxel, which takes knowing what anatomy"
    " looks like and needs no label drawn by a person."
)

HIDDEN = (
    "Blocks of a crop are hidden, and the network has to tell their voxels from the rest, which takes knowing what"
    " anatomy looks like and needs no label drawn by a person."
)

LEAD = "What the network was asked, and what it makes of the scans."

GROUPS = {
    "masked_": (
        "Masked reconstruction",
        HIDDEN,
        {"whole": "Crop", "visible": "What the network sees of it", "told": "Hidden blocks as the network tells them"},
    ),
    "part_whole_": (
        "Part and whole",
        "The embedding of a whole has to follow from those of its parts, and the parts' from the whole's.",
        {"whole": "Whole", "parts": "Its parts, drawn apart", "air": "Parts that count as air, white"},
    ),
    "graph_matching_": (
        "Graph matching",
        "Nodes of two views have to find their partners, alone and with their neighbours. Green lines are true matches,"
        " red ones false; yellow nodes have no partner and were left without one. Nodes of all planes are drawn on the"
        " middle one.",
        {
            "matched_nodes": "Samples of one graph: first views above, second below",
            "matched_tokens": "Two views of a crop",
        },
    ),
}
"""Of the pictures of other objectives, by how their names start: title, task, and captions by the rest of the name."""

FEATURES = (
    "The first three principal components of the network's finest features, of all crops together, as red, green and"
    " blue: what has the same colour looks alike to the network. Features that are worth something follow the anatomy."
)

NEIGHBOURS = (
    "Each row begins with a crop's middle axial plane, followed by the crops of other patients that look most alike to"
    " the network, the most alike first; of each patient one."
)


def pretext_section(run: Path) -> Section:
    """Pictures of the objectives and of what the network makes of the scans.

    Args:
        run: Of pretraining; `preview.npz` in it holds them.
    """
    file = run / "preview.npz"
    if not file.is_file():
        return Section("Pretext task", page.paragraph("No preview was saved."))
    with np.load(file, allow_pickle=False) as loaded:
        arrays = {key: loaded[key] for key in loaded.files}
    z, y, x = (float(s) for s in arrays.pop("spacing"))
    parts = [_fusion(arrays, (z, y, x))] if "fused" in arrays else []
    if parts:
        parts.append(_saturation(run))
    if "supervised_label" in arrays:
        parts.append(_supervised(arrays, (z, y, x)))
    for start, (title, lead, captions) in GROUPS.items():
        own = {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}
        if own:
            at = 4 if start == "part_whole_" else 2  # between two parts there is nothing to see
            pictures = [_picture(value, (z, y, x), captions.get(key, _words(key)), at) for key, value in own.items()]
            parts.append(page.heading(title) + (page.paragraph(lead) if lead else "") + page.grid(pictures, "three"))
    parts += _features(arrays, (z, y, x))
    if "neighbours" in arrays:
        sheet = page.picture(mosaic(arrays["neighbours"]), "Crops and their neighbours", "")
        parts.append(page.heading("Neighbours across patients") + page.paragraph(NEIGHBOURS) + sheet)
    if not parts:
        return Section("Pretext task", page.paragraph("The objectives of this run make no pictures."))
    return Section("Pretext task", "\n".join(parts) + page.paragraph(CONVENTION, "note"), LEAD)


def _supervised(arrays: Arrays, spacing: Size3) -> str:
    """A labelled scan, its label and the guess, through the label's middle."""
    image = arrays["supervised_image"].astype(np.float32)
    label, guess = (arrays[f"supervised_{name}"].astype(np.uint8) for name in ("label", "prediction"))
    if label.any():
        z, y, x = (int(v) for v in np.round(np.argwhere(label > 0).mean(axis=0)))
    else:
        z, y, x = (n // 2 for n in image.shape)
    look: dict[str, Any] = {"window": (0.0, 1.0), "point": (z, y, x), "fill": 0.6}
    drawn = (("Labelled scan", None), ("Label", label), ("What the network names", guess))
    pictures = [page.picture(three_planes(image, spacing, prediction=one, **look), text, text) for text, one in drawn]
    note = (
        f"In this example {float((label == guess)[label > 0].mean()):.0%} of the labelled voxels are named right."
        if label.any()
        else "In this example nothing is labelled."
    )
    lead = page.paragraph("Scans that people have labelled are segmented; each colour is one class.")
    return page.heading("Supervised") + lead + page.grid(pictures, "three") + page.paragraph(note, "note")


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _picture(value: NDArray[Any], spacing: Size3, text: str, at: int = 2) -> str:
    """A volume through its middle, or another share of its sides, or a picture (y, x, 3) as it is."""
    if value.ndim == 3 and value.dtype == np.uint8 and value.shape[2] == 3:
        return page.picture(_png(value), text, text)
    volume = value.astype(np.float32)
    z, y, x = volume.shape
    window = (float(volume.min()), max(float(volume.max()), float(volume.min()) + 1e-6))
    png = three_planes(volume, spacing, window=window, point=(z // at, y // at, x // at))
    return page.picture(png, text, text)


def _features(arrays: Arrays, spacing: Size3) -> list[str]:
    """Crops beside the colours of their features."""
    pairs: list[str] = []
    for number in range(sum(key.startswith("features_image_") for key in arrays)):
        image, colours = arrays[f"features_image_{number}"], arrays[f"features_colours_{number}"]
        z, y, x = image.shape
        middle = (z // 2, y // 2, x // 2)
        crop = three_planes(image, spacing, window=(0.0, 1.0), point=middle)
        drawn = three_planes(image, spacing, point=middle, colours=colours)
        pairs += [
            page.picture(crop, f"Crop {number + 1}", f"Crop {number + 1}"),
            page.picture(drawn, f"Features of crop {number + 1} as colours", f"Features of crop {number + 1}"),
        ]
    return [page.heading("Features as colours") + page.paragraph(FEATURES) + page.grid(pairs)] if pairs else []


def mosaic(planes: NDArray[np.floating[Any]], side: int = 144) -> bytes:
    """Planes (row, place, y, x) in 0..1 as one picture, feet or back at the bottom; the first of each row set apart."""
    rows, places = planes.shape[:2]
    width = places * (side + GAP) + 2 * GAP
    sheet = Image.new("L", (width, rows * (side + GAP) + GAP), GROUND)
    for row in range(rows):
        for place in range(places):
            plane = (np.clip(planes[row, place], 0, 1)[::-1, ::-1] * 255).round().astype(np.uint8)
            cell = Image.fromarray(plane)
            cell = cell.resize((side, max(1, round(side * cell.height / cell.width))), Image.Resampling.BICUBIC)
            cell = cell.crop((0, 0, side, min(side, cell.height)))
            sheet.paste(cell, (GAP + place * (side + GAP) + (GAP if place else 0), GAP + row * (side + GAP)))
    return _png(np.asarray(sheet))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return out.getvalue()


def _saturation(run: Path) -> str:
    """What to do if Volume Fusion's task is solved; nothing if it is not."""
    since = saturated_since(read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else [])
    return "" if since is None else page.paragraph(f"Volume Fusion is {since.text()}", "note")


def _fusion(arrays: Arrays, spacing: Size3) -> str:
    """The fused volume, what it was made of, and what the network makes of it."""
    images = {key: arrays[key].astype(np.float32) for key in CROPS}
    truth, guess = (arrays[key].astype(np.uint8) for key in ("label", "prediction"))
    levels = max(1, int(truth.max()), int(guess.max()))
    palette = ramp(levels)
    window = (float(min(i.min() for i in images.values())), float(max(i.max() for i in images.values())))
    middle = truth.shape[0] // 2, truth.shape[1] // 2, truth.shape[2] // 2
    pictures = [
        page.picture(three_planes(images[key], spacing, window=window, point=middle), text, text)
        for key, text in CROPS.items()
    ]
    for text, label in (("True level", truth), ("Level the network names", guess)):
        look = {"window": window, "point": middle, "palette": palette, "fill": 0.85}
        png = three_planes(images["fused"], spacing, prediction=label, **look)
        pictures.append(page.picture(png, text, text))
    ends = {1: " (mostly background)", levels: " (foreground only)"}
    key = page.legend((f"level {k}{ends.get(k, '')}", palette[k - 1]) for k in range(1, levels + 1))
    right = float((truth == guess).mean())
    usual = float(np.bincount(truth.ravel()).max() / truth.size)
    note = (
        f"In this example from the pretraining scans the network names the right level at {right:.0%} of all voxels;"
        f" always naming the commonest level would get {usual:.0%}. Level 0 (background only) is not coloured."
    )
    return (
        page.heading("Volume Fusion")
        + page.paragraph(FUSION)
        + key
        + page.grid(pictures, "three")
        + page.paragraph(note, "note")
    )
