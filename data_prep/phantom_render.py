"""Renders a phantom on a voxel grid: tissue of every voxel first, HU and labels from it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from data_prep.phantom_parts import CLASSES, Anatomy, Blob, Shape, Spine, Tissue, Trunk, Tube, triple
from voxscale.seed import rng
from voxscale.volume import Affine, Triple

T = Tissue
TEXTURE_HU: dict[Tissue, float] = {
    T.SKIN: 5,
    T.FAT: 5,
    T.MUSCLE: 8,
    T.CAVITY: 7,
    T.MEDIASTINUM: 7,
    T.LUNG: 35,
    T.HEART: 6,
    T.LIVER: 5,
    T.LESION: 7,
    T.SPLEEN: 4,
    T.PANCREAS: 12,
    T.CORTEX: 6,
    T.MEDULLA: 8,
    T.SINUS: 20,
    T.BOWEL: 10,
    T.CHYME: 8,
    T.FAECES: 70,
    T.RIB: 90,
    T.RIB_MARROW: 60,
    T.BONE: 110,
    T.MARROW: 55,
    T.DISC: 8,
}
"""Standard deviation of the texture of each tissue in HU; none where not listed."""

TEXTURE_MM = 2.2
"""Grain of the texture."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the voxels of a scan are.

    Attributes:
        shape: Voxels along z, y, x.
        affine: As in `voxscale.volume.Volume`.
    """

    shape: tuple[int, int, int]
    affine: Affine


Map = NDArray[np.float32]


class Space:
    """Body coordinates of every voxel of a grid.

    Attributes:
        axes: z, y and x in mm, each of the grid's shape.
    """

    def __init__(self, anatomy: Anatomy, grid: Grid) -> None:
        pose = np.eye(4)
        pose[:3, :3] = rotation(anatomy.turn) * anatomy.scale
        self._to_index = np.linalg.inv(grid.affine) @ pose
        self._shape = grid.shape
        straight = coordinates(np.linalg.inv(pose) @ grid.affine, grid.shape)
        shift: list[Map] = [np.zeros(grid.shape, dtype=np.float32) for _ in range(3)]
        for wave in anatomy.waves:
            z, y, x = (np.float32(k) * axis for k, axis in zip(wave.k, straight, strict=True))
            swing = np.sin(z + y + x + np.float32(wave.phase))
            for moved, push in zip(shift, wave.push, strict=True):
                moved += np.float32(push) * swing
        self._slack = np.array([np.abs(moved).max() for moved in shift])
        self.axes: list[Map] = [axis + moved for axis, moved in zip(straight, shift, strict=True)]

    def window(self, centre: Triple, half: Triple) -> tuple[slice, slice, slice]:
        """The voxels that can lie within `half` mm of a point along the body's axes."""
        middle = self._to_index[:3] @ (*centre, 1.0)
        reach = np.abs(self._to_index[:3, :3]) @ (np.asarray(half) + self._slack)
        low = np.clip(np.floor(middle - reach), 0, self._shape).astype(int)
        high = np.clip(np.ceil(middle + reach) + 1, 0, self._shape).astype(int)
        z, y, x = (slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
        return z, y, x


def rotation(degrees: Triple) -> NDArray[np.float64]:
    """3x3 rotation about z, then y, then x, in (z, y, x) order."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        one, two = (i for i in range(3) if i != axis)
        step = np.eye(3)
        step[[one, two], [one, two]] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn


def coordinates(affine: Affine, shape: tuple[int, int, int]) -> list[Map]:
    """Where an affine puts each voxel: three float32 arrays of the given shape."""
    steps = np.ogrid[tuple(slice(n) for n in shape)]
    out: list[Map] = []
    for row in affine[:3]:
        sum_ = row[3] + row[0] * steps[0] + row[1] * steps[1] + row[2] * steps[2]
        out.append(np.ascontiguousarray(sum_, dtype=np.float32))
    return out


def paint(tissue: NDArray[np.uint8], where: NDArray[np.bool_], shape: Shape) -> None:
    """Set a shape's tissue where it may go."""
    allowed = np.zeros(len(Tissue), dtype=bool)
    allowed[list(shape.over)] = True
    tissue[where & allowed[tissue]] = shape.tissue


def draw_blob(tissue: NDArray[np.uint8], space: Space, blob: Blob) -> None:
    """Paint a superquadric."""
    turn = rotation(blob.tilt)
    box = space.window(blob.centre, triple(np.abs(turn) @ np.multiply(blob.radii, 1 + blob.ripple)))
    local = [axis[box] - np.float32(c) for axis, c in zip(space.axes, blob.centre, strict=True)]
    level: Map = np.zeros(local[0].shape, dtype=np.float32)
    waves: Map = np.zeros(local[0].shape, dtype=np.float32)
    for number, (column, radius) in enumerate(zip(turn.T.astype(np.float32), blob.radii, strict=True), 1):
        u = (column[0] * local[0] + column[1] * local[1] + column[2] * local[2]) / np.float32(radius)
        level += np.square(u) if blob.power == 2.0 else np.abs(u) ** np.float32(blob.power)
        if blob.ripple:
            waves += np.sin(np.float32(2.8) * u + np.float32(number * blob.phase))
    # The surface moves by `ripple` at most: level is about radius ** power, and |waves| <= 3.
    paint(tissue[box], level < (1 + np.float32(blob.ripple / 3) * waves) ** np.float32(blob.power), blob)


def draw_tube(tissue: NDArray[np.uint8], space: Space, tube: Tube) -> None:
    """Paint each rod of a tube: the points nearer to it than its radius there."""
    for start, end, first, last in zip(tube.points, tube.points[1:], tube.radii, tube.radii[1:], strict=False):
        a, b = np.asarray(start), np.asarray(end)
        box = space.window(triple((a + b) / 2), triple(np.abs(b - a) / 2 + max(first, last)))
        local = [axis[box] - np.float32(c) for axis, c in zip(space.axes, start, strict=True)]
        rod = (b - a).astype(np.float32)
        along = sum(c * u for c, u in zip(rod, local, strict=True)) / np.float32(max(float(rod @ rod), 1e-6))
        along = np.clip(along, 0, 1)
        apart = sum(np.square(u - c * along) for c, u in zip(rod, local, strict=True))
        paint(tissue[box], apart < np.square(np.float32(first) + np.float32(last - first) * along), tube)


def draw_trunk(space: Space, trunk: Trunk) -> NDArray[np.uint8]:
    """Skin, fat, muscle, ribs, lungs and an empty body cavity, (z, y, x)."""
    z, y, x = space.axes
    half_y, half_x = trunk.cavity
    power = np.float32(trunk.power)
    level = (np.abs(y / np.float32(half_y)) ** power + np.abs(x / np.float32(half_x)) ** power) ** (1 / power)
    radius = np.hypot(y, x)
    out = radius - radius / np.maximum(level, np.float32(1e-3))  # mm outside the cavity, along the ray from its axis
    # Fat is thicker at the flanks and low down.
    thick = np.float32(trunk.fat) * (1 + np.float32(0.4) * (np.abs(x) / (radius + 1) - np.float32(0.5)))
    thick *= np.clip(1 - z / np.float32(400), 0.6, 1.3)
    wall = np.float32(trunk.wall)
    tissue = np.full(z.shape, T.AIR, dtype=np.uint8)
    tissue[out < wall + thick + 2] = T.SKIN
    tissue[out < wall + thick] = T.FAT
    tissue[out < wall] = T.MUSCLE
    inside = out < 0
    tissue[inside] = T.CAVITY
    diaphragm = dome(trunk, y, x, 0)
    np.maximum(diaphragm, dome(trunk, y, x, 1), out=diaphragm)
    tissue[inside & (z > diaphragm - 3)] = T.MUSCLE
    middle = np.square(x / 32) + np.square((y - 12) / np.float32(1.05 * half_y)) < 1
    tissue[inside & (z > diaphragm) & ~middle] = T.LUNG
    tissue[inside & (z > diaphragm) & middle] = T.MEDIASTINUM
    draw_ribs(tissue, space, trunk, out)
    return tissue


def dome(trunk: Trunk, y: Map, x: Map, side: int) -> Map:
    """Height of one dome of the diaphragm over each point, in mm; 0 is the right one."""
    half_y, half_x = trunk.cavity
    centre = np.float32((0.48, -0.48)[side] * half_x)
    aside = (x - centre) * np.sign(centre)  # mm towards the flank; the fall towards the middle is gentler
    wide = np.where(aside > 0, np.float32(0.52 * half_x), np.float32(0.85 * half_x))
    fall = np.square(aside / wide) + np.square((y - 8) / np.float32(half_y))
    return np.maximum(np.float32(trunk.domes[side]) - 70 * fall, np.float32(5))


def draw_ribs(tissue: NDArray[np.uint8], space: Space, trunk: Trunk, out: Map) -> None:
    """Paint ribs that run in the wall and fall towards the front, and end at the costal margin."""
    z, y, _ = space.axes
    turn = (z + np.float32(trunk.rib_slope) * y) / np.float32(trunk.rib_period)
    off = (turn - np.round(turn)) * np.float32(trunk.rib_period)
    level = np.square(off / 5) + np.square((out - np.float32(0.5 * trunk.wall)) / np.float32(3.6))
    caged = (z > -25 + np.float32(0.9) * np.maximum(y, 0)) & (tissue == T.MUSCLE)
    tissue[caged & (level < 1)] = T.RIB
    tissue[caged & (level < 0.3)] = T.RIB_MARROW


def draw_spine(tissue: NDArray[np.uint8], space: Space, spine: Spine) -> None:
    """Paint vertebrae with their arches and processes, discs and the spinal canal."""
    box = space.window((0.0, spine.y - 15, 0.0), (1e4, 65.0, 48.0))
    z, y, x = (axis[box] for axis in space.axes)
    part = tissue[box]
    depth, width = spine.radii
    u = x - np.float32(spine.scoliosis) * np.sin(z / 60)
    v = y - np.float32(spine.y) - np.float32(spine.lordosis) * np.sin(z / 55)
    turn = (z - np.float32(spine.offset)) / np.float32(spine.period)
    w = np.abs(turn - np.round(turn)) * np.float32(spine.period)  # mm from the middle of a vertebra
    half = np.float32((spine.period - spine.disc) / 2)
    waist = 1 - np.float32(0.1) * np.clip(1 - np.square(w / half), 0, 1)
    level = (np.abs(u / width) ** np.float32(2.4) + np.abs(v / depth) ** np.float32(2.4)) ** np.float32(1 / 2.4) / waist
    back = v + np.float32(depth + 9)
    ring = (np.square(u / 16) + np.square(back / 14) < 1) & (w < 0.75 * half)
    spinous = (np.abs(u) < 3.2) & (back < -8) & (back > -30) & (w < 8 + back * np.float32(0.1))
    transverse = (np.abs(back - 2) < 4) & (np.abs(u) < 38) & (np.abs(u) > 12) & (w < 6)
    part[ring | spinous | transverse] = T.BONE
    part[np.square(u / 10) + np.square(back / 8) < 1] = T.CANAL
    solid = level < 1
    part[solid] = T.BONE
    part[solid & (level < 0.86) & (w < half - 1.6)] = T.MARROW
    part[(level < 1) & (w > half)] = T.DISC


def tissue_map(anatomy: Anatomy, grid: Grid) -> NDArray[np.uint8]:
    """The `Tissue` of every voxel, (z, y, x)."""
    space = Space(anatomy, grid)
    tissue = draw_trunk(space, anatomy.trunk)
    for shape in anatomy.shapes:
        if isinstance(shape, Blob):
            draw_blob(tissue, space, shape)
        else:
            draw_tube(tissue, space, shape)
    draw_spine(tissue, space, anatomy.spine)
    return tissue


def smooth_noise(random: np.random.Generator, shape: tuple[int, int, int], sigma: Triple) -> Map:
    """Gaussian noise of standard deviation 1 with a grain of `sigma` voxels."""
    white = random.standard_normal(shape, dtype=np.float32)
    smooth = gaussian_filter(white, sigma, mode="wrap")
    return smooth / np.float32(max(float(smooth.std()), 1e-6))


def intensities(anatomy: Anatomy, grid: Grid, tissue: NDArray[np.uint8]) -> Map:
    """HU of every voxel, (z, y, x): mean and texture of its tissue, partial volume, noise and streaks."""
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    random = rng(anatomy.seed, "texture")
    depth = np.array([TEXTURE_HU.get(kind, 0.0) for kind in Tissue], dtype=np.float32)
    hu = np.asarray(anatomy.hu, dtype=np.float32)[tissue]
    hu += depth[tissue] * smooth_noise(random, grid.shape, triple(TEXTURE_MM / spacing))
    hu = gaussian_filter(hu, 0.45)
    hu += np.float32(anatomy.noise) * smooth_noise(random, grid.shape, (0.4, anatomy.kernel, anatomy.kernel))
    body = np.float32(anatomy.streak) * (tissue != T.AIR)
    hu += body * smooth_noise(random, grid.shape, (0.3, 0.5, 12.0))
    return np.clip(hu, -1024, 3071, out=hu)


def labels(tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label values of `CLASSES`, counted from 1; 0 elsewhere."""
    table = np.zeros(len(Tissue), dtype=np.uint8)
    for value, kinds in enumerate(CLASSES.values(), 1):
        table[list(kinds)] = value
    return table[tissue]


def render(anatomy: Anatomy, grid: Grid) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """HU and labels of a phantom on a grid, each (z, y, x); the same arguments give the same voxels."""
    tissue = tissue_map(anatomy, grid)
    return np.rint(intensities(anatomy, grid, tissue)).astype(np.int16), labels(tissue)
