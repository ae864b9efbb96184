"""Draws one random subject: every organ near its nominal place, in an order that settles what covers what.

Shapes are painted one after the other, each only `over` certain tissues, so
that later ones are clipped by earlier ones: nothing leaves the body cavity.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom_parts import (
    FIXED_HU,
    PHASED,
    PHASES,
    Anatomy,
    Blob,
    Shape,
    Spine,
    Tissue,
    Trunk,
    Tube,
    Wave,
    triple,
)
from voxscale.seed import derive, rng
from voxscale.volume import Triple

T = Tissue


class Sampler:
    """Draws the parts of one subject around nominal values.

    Attributes:
        random: The generator.
        stretch: Factors along z, y, x from the nominal cavity to this subject's.
    """

    def __init__(self, random: np.random.Generator, stretch: Triple) -> None:
        self.random = random
        self.stretch = stretch

    def within(self, low: float, high: float) -> float:
        """A uniform number."""
        return float(self.random.uniform(low, high))

    def near(self, centre: Sequence[float], spread: float) -> Triple:
        """A point near a nominal one, which is first stretched to this body."""
        return triple(np.multiply(centre, self.stretch) + self.random.uniform(-spread, spread, 3))

    def blob(
        self,
        tissue: Tissue,
        over: tuple[Tissue, ...],
        centre: Sequence[float],
        radii: Sequence[float],
        spread: float = 5.0,
        power: float = 2.0,
        tilt: Triple = (0.0, 0.0, 0.0),
        ripple: float = 0.08,
    ) -> Blob:
        """A blob near nominal place, size and tilt."""
        size = triple(np.multiply(radii, self.random.uniform(0.88, 1.12, 3)))
        turned = triple(np.add(tilt, self.random.uniform(-8, 8, 3)))
        return Blob(tissue, over, self.near(centre, spread), size, power, turned, ripple, self.within(0, 2 * np.pi))

    def tube(
        self,
        tissue: Tissue,
        over: tuple[Tissue, ...],
        path: Sequence[Sequence[float]],
        radius: float,
        spread: float = 3.0,
    ) -> Tube:
        """A tube of even width along a path near the nominal one."""
        return Tube(tissue, over, tuple(self.near(point, spread) for point in path), (radius,) * len(path))

    def tree(
        self,
        tissue: Tissue,
        over: tuple[Tissue, ...],
        root: Triple,
        heading: NDArray[np.float64],
        length: float,
        radius: float,
        levels: int,
    ) -> list[Shape]:
        """A vessel that forks into two thinner ones at each level."""
        bent = heading / np.linalg.norm(heading) + self.random.normal(0, 0.2, 3)
        tip = triple(np.asarray(root) + length * bent / np.linalg.norm(bent))
        shapes: list[Shape] = [Tube(tissue, over, (root, tip), (radius, 0.8 * radius))]
        if levels > 1:
            for _ in range(2):
                fork = bent + self.random.normal(0, 0.55, 3)
                shapes += self.tree(
                    tissue, over, tip, fork, length * self.within(0.65, 0.95), 0.75 * radius, levels - 1
                )
        return shapes


INSIDE = (T.CAVITY,)


def liver(draw: Sampler) -> list[Shape]:
    """Both lobes, vessels, lesions and the gallbladder."""
    parts: list[Shape] = [
        draw.blob(T.LIVER, INSIDE, (38, 0, 72), (82, 76, 62), 6, 2.4, (0, -12, 0), 0.1),
        draw.blob(T.LIVER, INSIDE, (62, 40, 5), (34, 34, 70), 7, 2.2, (0, 14, 0), 0.12),
        draw.blob(T.GALLBLADDER, (T.LIVER, *INSIDE), (5, 42, 48), (20, 12, 12), 5),
    ]
    porta = draw.near((30, 5, 35), 4)
    for heading in ((0.2, 0.3, 1.0), (0.7, 0.6, 0.5), (0.5, -0.4, 0.9)):
        parts += draw.tree(T.LIVER_VESSEL, (T.LIVER,), porta, np.array(heading), 30, 5.5, 4)
    top = draw.near((85, -15, 30), 4)
    for heading in ((-0.5, 0.6, 0.8), (-0.4, -0.1, 1.0)):
        parts += draw.tree(T.LIVER_VESSEL, (T.LIVER,), top, np.array(heading), 32, 4.5, 3)
    for _ in range(int(draw.random.integers(0, 5))):
        radius = draw.within(5, 16)
        parts.append(draw.blob(T.LESION, (T.LIVER, T.LIVER_VESSEL), (40, 0, 72), (radius,) * 3, 45, ripple=0.25))
    return parts


def kidneys(draw: Sampler) -> list[Shape]:
    """Both kidneys with cortex, pyramids and the fat or urine of the sinus."""
    parts: list[Shape] = []
    tissues = (T.LIVER, T.LIVER_VESSEL, T.LESION, *INSIDE)
    size = draw.within(0.9, 1.1)
    for side, z in ((1, -22), (-1, -8)):
        lean = (draw.within(-20, 20), 10.0 * side, -8.0)
        body = draw.blob(T.CORTEX, tissues, (z, -36, 62 * side), (52 * size, 27 * size, 25 * size), 5, 2.2, lean, 0.06)
        z_, y_, x_ = body.centre
        a, b, c = body.radii
        parts.append(body)
        for step in np.linspace(-0.62, 0.62, 5):
            spot = (z_ + float(step) * a, y_ + 2.0, x_ - 1.0 * side)
            wide = (0.16 * a, 0.6 * b * (1 - step**2), 0.62 * c * (1 - step**2))
            parts.append(Blob(T.MEDULLA, (T.CORTEX,), spot, wide))
        hilum = (z_, y_ + 0.25 * b, x_ - 0.6 * c * side)
        parts.append(
            Blob(T.SINUS, (T.CORTEX, T.MEDULLA), hilum, (0.42 * a, 0.42 * b, 0.6 * c), ripple=0.3, phase=body.phase)
        )
    return parts


def left_side(draw: Sampler) -> list[Shape]:
    """Spleen, stomach and pancreas."""
    return [
        draw.blob(T.SPLEEN, INSIDE, (44, -32, -88), (56, 40, 31), 5, 2.2, (25, 0, 0), 0.12),
        (stomach := draw.blob(T.BOWEL, INSIDE, (50, 28, -58), (42, 34, 36), 7, 2.2, (20, 20, 0), 0.15)),
        inner(stomach, T.CHYME, (T.BOWEL,), 4.0),
        draw.blob(T.GAS, (T.CHYME,), (58, 52, -58), (32, 15, 26), 5, ripple=0.2),
        draw.tube(T.PANCREAS, INSIDE, ((-8, 12, 34), (8, 18, 10), (14, 10, -25), (24, -5, -62)), draw.within(8, 11), 4),
    ]


def inner(blob: Blob, tissue: Tissue, over: tuple[Tissue, ...], wall: float) -> Blob:
    """The content of a hollow blob whose wall is `wall` mm thick."""
    z, y, x = (max(radius - wall, 1.0) for radius in blob.radii)
    return Blob(tissue, over, blob.centre, (z, y, x), blob.power, blob.tilt, blob.ripple, blob.phase)


def bowel(draw: Sampler) -> list[Shape]:
    """Colon with faeces and gas in front of it, and loops of small bowel."""
    parts: list[Shape] = []
    rising = ((-130, -8, 92), (-80, -5, 96), (-35, 5, 88))
    across = ((-35, 30, 80), (-42, 58, 40), (-45, 62, -20), (-20, 55, -70), (15, 30, -92))
    falling = ((5, -5, -98), (-50, -12, -100), (-130, -8, -92))
    for path in (rising, across, falling):
        wide = draw.within(13, 22)
        outer = draw.tube(T.BOWEL, INSIDE, path, wide, 5)
        content = T.FAECES if draw.random.random() < 0.6 else T.CHYME
        parts += [outer, Tube(content, (T.BOWEL,), outer.points, (wide - 3,) * len(path))]
        for z, y, x in outer.points:
            parts.append(draw_gas(draw, content, (z, y, x), wide))
    for _ in range(int(draw.random.integers(24, 40))):
        wide = draw.within(9, 14)
        start = np.array([draw.within(-130, -15), draw.within(0, 62), draw.within(-72, 72)])
        path = [start, start + draw.random.normal(0, 22, 3), start + draw.random.normal(0, 28, 3)]
        outer = draw.tube(T.BOWEL, INSIDE, [tuple(p) for p in path], wide, 0)
        parts += [outer, Tube(T.CHYME, (T.BOWEL,), outer.points, (wide - draw.within(2, 4),) * 3)]
    return parts


def draw_gas(draw: Sampler, over: Tissue, point: Triple, wide: float) -> Blob:
    """A bubble that rises to the front wall of a piece of bowel."""
    z, y, x = point
    place = (z + draw.within(-20, 20), y + draw.within(0.3, 0.9) * wide, x + draw.within(-6, 6))
    return Blob(T.GAS, (over,), place, (draw.within(8, 26), wide * draw.within(0.4, 0.9), wide), ripple=0.3)


def vessels(draw: Sampler, spine: Spine) -> list[Shape]:
    """Aorta, vena cava, their branches and the vessels of the mesentery."""
    y = spine.y + spine.radii[0] + 12
    free = (T.CAVITY, T.MEDIASTINUM, T.PANCREAS, T.HEART, T.LIVER, T.LIVER_VESSEL)
    aorta, cava = draw.within(8, 12), draw.within(9, 13)
    heights = (-140, -60, 0, 60, 120, 190)
    back = [(z, y - max(z - 40, 0) * 0.1 + spine.lordosis * np.sin(z / 55), -10.0) for z in heights]
    front = [(z, y + 4 + spine.lordosis * np.sin(z / 55), 20.0) for z in heights[:-1]]
    path = tuple((float(z), float(u), x + draw.within(-3, 3)) for z, u, x in back)
    vein = tuple((float(z), float(u), x + draw.within(-3, 3)) for z, u, x in front)
    parts: list[Shape] = [
        Tube(T.VEIN, free, vein, (cava,) * len(vein)),
        Tube(T.ARTERY, free, path, (aorta,) * len(path)),
    ]
    for side, tissue, thin in ((1, T.ARTERY, 2.6), (-1, T.ARTERY, 2.6), (1, T.VEIN, 4.5), (-1, T.VEIN, 4.5)):
        hilum = draw.near((-14, -30, 44 * side), 3)
        parts.append(Tube(tissue, INSIDE, ((draw.within(-10, 5), y, 4.0), hilum), (thin, thin)))
    for tissue in (T.ARTERY, T.VEIN):
        root = (draw.within(0, 12), y + 14, 4.0 if tissue == T.VEIN else -8.0)
        parts += draw.tree(tissue, INSIDE, root, np.array([-1.0, 0.35, 0.1]), 32, 4.0, 5)
    return parts


def chest(draw: Sampler) -> list[Shape]:
    """Heart, vessels of the lungs and sometimes a nodule."""
    parts: list[Shape] = [
        draw.blob(T.HEART, (T.MEDIASTINUM, T.LUNG), (135, 22, -22), (48, 42, 50), 6, 2.2, (25, 25, 0), 0.08),
        draw.blob(T.VEIN, (T.HEART,), (138, 24, 4), (32, 28, 22), 4, ripple=0.15),
        draw.blob(T.ARTERY, (T.HEART,), (132, 20, -38), (30, 20, 20), 4, tilt=(25, 25, 0), ripple=0.15),
    ]
    for side in (1, -1):
        root = draw.near((130, -5, 38 * side), 4)
        for heading in ((-0.9, -0.5, 0.6), (-0.5, 0.6, 0.8), (0.5, -0.3, 0.9), (0.7, 0.5, 0.5), (-0.9, -0.1, 0.3)):
            parts += draw.tree(T.LUNG_VESSEL, (T.LUNG,), root, np.array(heading) * (1, 1, side), 30, 6.0, 5)
        for _ in range(int(draw.random.integers(0, 3))):
            radius = draw.within(3, 10)
            parts.append(
                draw.blob(T.NODULE, (T.LUNG, T.LUNG_VESSEL), (110, -20, 80 * side), (radius,) * 3, 40, ripple=0.3)
            )
    return parts


def muscles(draw: Sampler, spine: Spine) -> list[Shape]:
    """The muscles beside the spine."""
    parts: list[Shape] = []
    over = (T.CAVITY, T.MEDIASTINUM, T.FAT, T.LUNG)
    for side in (1, -1):
        back = (20.0, spine.y - 38, 31.0 * side)
        parts.append(Blob(T.MUSCLE, over, back, (400.0, draw.within(18, 22), draw.within(25, 30)), 2.4))
        path = ((5, spine.y - 4, 27.0 * side), (-60, spine.y, 38.0 * side), (-140, spine.y + 8, 50.0 * side))
        parts.append(Tube(T.MUSCLE, over, path, (7.0, draw.within(14, 18), draw.within(19, 23))))
    return parts


def sample_hu(draw: Sampler, phase: str) -> tuple[float, ...]:
    """Mean HU of every tissue, indexed by `Tissue`."""
    hu = {tissue: draw.within(low, high) for tissue, (low, high) in FIXED_HU.items()}
    hu |= {tissue: draw.within(low, high) for tissue, (low, high) in zip(PHASED, PHASES[phase], strict=True)}
    if draw.random.random() < 0.25:
        hu[T.LIVER] -= draw.within(8, 25)  # a fatty liver
    hu[T.LIVER_VESSEL] = hu[T.VEIN]
    hu[T.LESION] = hu[T.LIVER] + float(draw.random.choice([-1, -1, -1, 1])) * draw.within(18, 50)
    hu[T.HEART] = 0.5 * (hu[T.MUSCLE] + min(hu[T.VEIN], 140.0))
    hu[T.LUNG_VESSEL] = hu[T.HEART]
    return tuple(hu[tissue] for tissue in Tissue)


def sample_anatomy(seed: int, case: str) -> Anatomy:
    """Draw one subject.

    Args:
        seed: Of the cohort.
        case: Name of the subject in the cohort.
    """
    random = rng(seed, "phantom", case, "anatomy")
    cavity = (float(random.uniform(72, 86)), float(random.uniform(106, 126)))
    draw = Sampler(random, (1.0, cavity[0] / 79, cavity[1] / 116))
    trunk = Trunk(
        cavity=cavity,
        wall=draw.within(9, 14),
        fat=draw.within(5, 22),
        power=draw.within(2.1, 2.6),
        domes=(draw.within(88, 108), draw.within(78, 98)),
        rib_period=draw.within(25, 31),
        rib_slope=draw.within(0.7, 1.0),
    )
    spine = Spine(
        y=46 - cavity[0],
        lordosis=draw.within(2, 8),
        scoliosis=draw.within(-5, 5),
        period=draw.within(28, 35),
        offset=draw.within(0, 30),
        disc=draw.within(4, 8),
        radii=(draw.within(14, 18), draw.within(19, 25)),
    )
    organs = [*liver(draw), *left_side(draw), *kidneys(draw), *bowel(draw)]
    phase = str(random.choice(list(PHASES)))
    return Anatomy(
        phase=phase,
        scale=draw.within(0.88, 1.08),
        turn=triple(random.uniform(-6, 6, 3)),
        waves=tuple(sample_wave(random) for _ in range(8)),
        trunk=trunk,
        spine=spine,
        shapes=(*muscles(draw, spine), *chest(draw), *organs, *vessels(draw, spine)),
        hu=sample_hu(draw, phase),
        noise=draw.within(6, 20),
        kernel=draw.within(0.35, 0.9),
        streak=draw.within(0, 5),
        seed=derive(seed, "phantom", case, "noise"),
    )


def sample_wave(random: np.random.Generator) -> Wave:
    """Draw a wave 90 to 260 mm long that pushes by 1 or 2 mm along each axis."""
    direction = random.normal(size=3)
    k = direction / np.linalg.norm(direction) * 2 * np.pi / random.uniform(90, 260)
    push = random.normal(0, 1.7, 3)
    return Wave(triple(k), triple(push), float(random.uniform(0, 2 * np.pi)))
