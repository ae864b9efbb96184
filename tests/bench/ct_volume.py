"""The volume that the feeding benchmarks read: a CT upsampled to 300 x 512 x 512, with noise, int16 HU."""

from pathlib import Path

import nibabel as nib
import numpy as np
from harness import ROOT
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from data_prep.phantom import sample_grid
from data_prep.phantom_anatomy import sample_anatomy
from data_prep.phantom_render import render

SHAPE = (300, 512, 512)
SCAN = ROOT.parent / "shared" / "data" / "ct_unlabelled" / "ct_chest_lidc0314.nii.gz"
NOISE_HU = 7.0


def real_ct() -> NDArray[np.int16]:
    """A real chest CT, upsampled."""
    if not Path(SCAN).is_file():
        raise SystemExit("error: this benchmark needs the real volumes of shared/data")
    return upsampled(np.asarray(nib.load(SCAN).dataobj).T)


def phantom_ct() -> NDArray[np.int16]:
    """A synthetic CT, upsampled, for where there is no real one."""
    voxels, _ = render(sample_anatomy(0, "bench"), sample_grid(0, "bench", whole=True))
    return upsampled(voxels)


def upsampled(small: NDArray[np.int16]) -> NDArray[np.int16]:
    """A CT at the size that scanners give; noise as correlated in the slice as a soft kernel leaves it."""
    small = small.astype(np.float32)
    large = zoom(small, [a / b for a, b in zip(SHAPE, small.shape, strict=True)], order=1)
    generator = np.random.default_rng(0)
    for plane in large:
        noise = gaussian_filter(generator.standard_normal(plane.shape, dtype=np.float32), 0.7)
        plane += noise * (NOISE_HU / noise.std()) * np.where(plane > -1000, 1.0, 0.5)
    return np.clip(np.rint(large), -1024, 3071).astype(np.int16)
