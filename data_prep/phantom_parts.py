"""What a digital phantom is made of: tissues with their HU, shapes in mm, and one whole subject.

Everything is in body coordinates (z, y, x) in mm, rising to superior, anterior
and right, with the origin between the kidneys.
"""

from dataclasses import dataclass
from enum import IntEnum, auto

import numpy as np
from numpy.typing import NDArray

from voxscale.volume import Triple


def triple(values: NDArray[np.float64]) -> Triple:
    """Three plain numbers."""
    z, y, x = values.tolist()
    return z, y, x


class Tissue(IntEnum):
    """What a voxel of a phantom is made of."""

    AIR = 0
    SKIN = auto()
    FAT = auto()
    MUSCLE = auto()
    CAVITY = auto()
    MEDIASTINUM = auto()
    LUNG = auto()
    LUNG_VESSEL = auto()
    NODULE = auto()
    HEART = auto()
    ARTERY = auto()
    VEIN = auto()
    LIVER = auto()
    LIVER_VESSEL = auto()
    LESION = auto()
    GALLBLADDER = auto()
    SPLEEN = auto()
    PANCREAS = auto()
    CORTEX = auto()
    MEDULLA = auto()
    SINUS = auto()
    BOWEL = auto()
    CHYME = auto()
    FAECES = auto()
    GAS = auto()
    RIB = auto()
    RIB_MARROW = auto()
    BONE = auto()
    MARROW = auto()
    DISC = auto()
    CANAL = auto()


T = Tissue
CLASSES: dict[str, tuple[Tissue, ...]] = {
    "liver": (T.LIVER, T.LIVER_VESSEL, T.LESION),
    "kidneys": (T.CORTEX, T.MEDULLA),
    "spine": (T.BONE, T.MARROW, T.DISC),
    "spleen": (T.SPLEEN,),
}
"""Tissues of each labelled class, in the order of the label values 1, 2, ..."""

FIXED_HU: dict[Tissue, tuple[float, float]] = {
    T.AIR: (-1000, -1000),
    T.SKIN: (0, 30),
    T.FAT: (-112, -95),
    T.MUSCLE: (45, 62),
    T.CAVITY: (-108, -85),
    T.MEDIASTINUM: (-100, -60),
    T.LUNG: (-860, -740),
    T.NODULE: (0, 60),
    T.GALLBLADDER: (2, 18),
    T.BOWEL: (35, 75),
    T.CHYME: (5, 40),
    T.FAECES: (-20, 50),
    T.GAS: (-960, -900),
    T.RIB: (450, 750),
    T.RIB_MARROW: (120, 280),
    T.BONE: (420, 800),
    T.MARROW: (130, 270),
    T.DISC: (70, 110),
    T.CANAL: (15, 40),
}
"""Range of the mean HU of tissues that take up no contrast medium."""

PHASED = (T.ARTERY, T.VEIN, T.LIVER, T.SPLEEN, T.PANCREAS, T.CORTEX, T.MEDULLA, T.SINUS)
PHASES: dict[str, tuple[tuple[float, float], ...]] = {
    "native": ((36, 48), (36, 48), (50, 66), (42, 54), (30, 45), (28, 38), (26, 36), (-40, 5)),
    "arterial": ((190, 250), (55, 100), (62, 82), (95, 135), (80, 115), (135, 180), (55, 90), (-40, 5)),
    "portal": ((120, 165), (130, 180), (88, 115), (100, 130), (70, 100), (140, 180), (120, 170), (-30, 20)),
    "late": ((80, 115), (80, 115), (70, 92), (68, 88), (55, 75), (100, 135), (100, 140), (120, 240)),
}
"""Range of the mean HU of each of `PHASED` at four times after contrast medium is given."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A superquadric with a rippled surface: sum(|local / radii| ** power) < 1.

    Attributes:
        tissue: Painted inside.
        over: Tissues that it may replace.
        centre: (z, y, x) in mm.
        radii: Along z, y, x in mm, before tilting.
        power: 2 is an ellipsoid, more is boxier.
        tilt: Degrees about z, y, x.
        ripple: Relative depth of the ripples.
        phase: Of the ripples, radians.
    """

    tissue: Tissue
    over: tuple[Tissue, ...]
    centre: Triple
    radii: Triple
    power: float = 2.0
    tilt: Triple = (0.0, 0.0, 0.0)
    ripple: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True, slots=True)
class Tube:
    """A chain of tapering rods with round ends.

    Attributes:
        tissue: Painted inside.
        over: Tissues that it may replace.
        points: Two or more (z, y, x) in mm.
        radii: One per point, in mm.
    """

    tissue: Tissue
    over: tuple[Tissue, ...]
    points: tuple[Triple, ...]
    radii: tuple[float, ...]


Shape = Blob | Tube


@dataclass(frozen=True, slots=True)
class Trunk:
    """The wall of the body and what follows it.

    Attributes:
        cavity: Half axes of the body cavity along y, x in mm.
        wall: Thickness of the muscle in mm.
        fat: Mean thickness of the fat under the skin in mm.
        power: Exponent of the superellipse.
        domes: Height of the right and the left dome of the diaphragm, z in mm.
        rib_period: Distance between ribs in mm.
        rib_slope: Fall of the ribs towards the front, mm per mm.
    """

    cavity: tuple[float, float]
    wall: float
    fat: float
    power: float
    domes: tuple[float, float]
    rib_period: float
    rib_slope: float


@dataclass(frozen=True, slots=True)
class Spine:
    """A column of vertebrae.

    Attributes:
        y: Of the centre of the vertebral bodies at z = 0, in mm.
        lordosis: Amplitude of the bend forwards in mm.
        scoliosis: Amplitude of the bend sideways in mm.
        period: Distance between vertebrae in mm.
        offset: z of the centre of a vertebra in mm.
        disc: Thickness of the discs in mm.
        radii: Of the vertebral bodies along y, x in mm.
    """

    y: float
    lordosis: float
    scoliosis: float
    period: float
    offset: float
    disc: float
    radii: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Wave:
    """One plane wave of the displacement that bends the whole body: `push * sin(k . p + phase)`, mm."""

    k: Triple
    push: Triple
    phase: float


@dataclass(frozen=True, slots=True)
class Anatomy:
    """One subject and how it was scanned: all that `render` needs besides the grid.

    Attributes:
        phase: Contrast phase, a key of `PHASES`.
        scale: Size of the body relative to nominal.
        turn: Pose, degrees about z, y, x.
        waves: Displacement.
        trunk: Body wall, diaphragm and ribs.
        spine: Vertebrae.
        shapes: Organs, in the order they are painted.
        hu: Mean HU of each tissue, indexed by `Tissue`.
        noise: Standard deviation of the noise in HU.
        kernel: Width of the noise grain in voxels.
        streak: Standard deviation of the streaks in HU.
        seed: Seed of texture and noise.
    """

    phase: str
    scale: float
    turn: Triple
    waves: tuple[Wave, ...]
    trunk: Trunk
    spine: Spine
    shapes: tuple[Shape, ...]
    hu: tuple[float, ...]
    noise: float
    kernel: float
    streak: float
    seed: int
