"""Pictures of what was learnt, for the report: the branches' own, colours of features, neighbours across patients."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pretrain.network import Look, Pictures, Pretraining
from pretrain.objectives.interface import Seen
from pretrain.probe.data import Unlabelled
from pretrain.scene import Scene
from voxscale import dist
from voxscale.engine.types import Engine
from voxscale.report.pca import pca_colours

SHOWN = 3
"""Crops whose features are coloured."""

QUERIES, NEAR = 4, 4
"""Crops whose neighbours are shown, and how many of them."""

Arrays = dict[str, NDArray[Any]]


@torch.no_grad()
def make_preview(
    engine: Engine, network: Pretraining, scene: Scene, crops: Unlabelled | None, micro: int, channels_last: bool
) -> Arrays:
    """All pictures by name; every rank calls, and on other ranks than 0 they are of no use.

    Args:
        engine: Holds the network.
        network: Backbone and branches.
        scene: What the branches show.
        crops: Of the training scans; None for the branches' pictures alone.
        micro: Samples in one pass.
        channels_last: Memory layout of the images.

    Returns:
        The branches' pictures; `features_image_N` (z, y, x) and `features_colours_N` (z, y, x, 3) of some crops;
        `neighbours` (query, place, y, x), the middle axial planes of crops and of the crops most like them.
    """
    engine.eval()
    arrays: Arrays = engine(Pictures(network.plans(scene), channels_last))["pictures"]
    if crops is None:
        return arrays
    pooled: list[Tensor] = []
    dense: list[Tensor] = []
    chosen = one_of_each(crops.subjects, SHOWN)
    for first, seen in passes(engine, network, crops.images, micro, channels_last):
        pooled.append(seen.features[-1].float().mean(dim=(2, 3, 4)).cpu())
        finest = (seen.decoded or seen.features[-1:])[0].float()
        dense += [finest[at - first].cpu() for at in chosen if first <= at < first + len(finest)]
    if dist.rank() != 0:
        return {}
    size = crops.images.shape[2:]
    wide = [F.interpolate(one[None], size=list(size), mode="nearest")[0].numpy() for one in dense]
    for number, (at, colours) in enumerate(zip(chosen, pca_colours(wide), strict=True)):
        outside = ~crops.inside[at].numpy()
        colours[outside] = 0
        arrays |= {f"features_image_{number}": crops.images[at, 0].numpy(), f"features_colours_{number}": colours}
    rows = neighbours(torch.cat(pooled), crops.subjects)
    if rows:
        planes = crops.images[:, 0, size[0] // 2].numpy()
        arrays["neighbours"] = np.stack([[planes[at] for at in row] for row in rows])
    return arrays


def passes(
    engine: Engine,
    network: Pretraining,
    images: Float[Tensor, "n 1 z y x"],
    micro: int,
    channels_last: bool,
    decoder: bool = True,
) -> Iterator[tuple[int, Seen]]:
    """Show crops, as many at a time as in training; yields the first one's number and what was made of them."""
    decoder = decoder and network.backbone.decoder_levels > 0
    for first in range(0, len(images), micro):
        part = images[first : first + micro].to(engine.device)
        rest = micro - len(part)
        padded = torch.cat([part, part[-1:].expand(rest, *part.shape[1:])]) if rest else part
        seen: Seen = engine(Look(padded, decoder, channels_last))["look"]["seen"]
        yield first, Seen([f[: len(part)] for f in seen.features], [f[: len(part)] for f in seen.decoded])


def one_of_each(subjects: Sequence[int], count: int) -> list[int]:
    """The first crop of each subject, then any, until there are `count`; rising."""
    first = list({subject: at for at, subject in reversed(list(enumerate(subjects)))}.values())
    rest = [at for at in range(len(subjects)) if at not in first]
    return sorted((sorted(first) + rest)[:count])


def neighbours(embeddings: Float[Tensor, "n c"], subjects: Sequence[int]) -> list[list[int]]:
    """Crops of different subjects, each with the most alike crop of every one of some other subjects.

    Alike is what has the largest cosine after the common mean is taken away.

    Args:
        embeddings: One row per crop.
        subjects: Number of each crop's subject.

    Returns:
        Up to `QUERIES` rows: the crop itself, then up to `NEAR` others, the most alike first; rows are equally long.
    """
    people = torch.tensor(subjects)
    near = min(NEAR, len(people.unique()) - 1)
    if near < 1:
        return []
    unit = F.normalize(embeddings.double() - embeddings.double().mean(dim=0), dim=1)
    alike = unit @ unit.T
    rows: list[list[int]] = []
    for query in one_of_each(subjects, min(QUERIES, len(people.unique()))):
        best = [
            int(torch.where(people == who, alike[query], -torch.inf).argmax())
            for who in people.unique().tolist()
            if who != subjects[query]
        ]
        best.sort(key=lambda at, query=query: -float(alike[query, at]))
        rows.append([query, *best[:near]])
    return rows
