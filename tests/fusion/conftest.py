"""Patients small enough to be written for every test."""

import numpy as np
import pytest

from medseg_core.io import write_picture, write_volume
from medseg_core.volume import Picture, Volume

CT_AFFINE = np.diag([-2.0, -2.0, 4.0, 1.0])  # LPS, as scanners write
PET_AFFINE = np.diag([-4.0, -4.0, 4.0, 1.0])
TUMOUR = (slice(4, 10), slice(6, 12), slice(1, 3))  # of the CT, whose axes 0 and 1 turn round in RAS


def volumes(seed=0):
    """HU (16, 20, 4), SUV (8, 10, 4) of the same place, and a mask on CT's grid."""
    rng = np.random.default_rng(seed)
    hu = np.full((16, 20, 4), -1000, np.int16)
    hu[2:14, 2:18] = rng.integers(20, 60, (12, 16, 4))
    mask = np.zeros(hu.shape, np.uint8)
    mask[TUMOUR] = 1
    suv = np.full((8, 10, 4), 0.5, np.float32)
    suv[2:5, 3:6, 1:3] = 6 + rng.random((3, 3, 2))
    return {"CT_image": (hu, CT_AFFINE), "PET_image": (suv, PET_AFFINE), "CT_mask": (mask, CT_AFFINE)}


@pytest.fixture
def write(tmp_path):
    """Writes a patient's volumes, some of them replaced by (voxels, affine), or left out by None."""

    def patient(name="p1", *, seed=0, **replaced):
        for file, content in {**volumes(seed), **replaced}.items():
            if content is not None:
                write_volume(Volume(*content), tmp_path / "data" / name / f"{file}.nii.gz")
        return tmp_path / "data"

    return patient


@pytest.fixture
def draw(tmp_path):
    """Writes pictures of slices {role: {name: pixels}} under a folder of tmp_path / "png"."""

    def pictures(planes, where="."):
        for role, named in planes.items():
            for name, pixels in named.items():
                write_picture(Picture(np.asarray(pixels, np.uint8)), tmp_path / "png" / where / role / f"{name}.png")
        return tmp_path / "png"

    return pictures


def planes(names, shape=(12, 16), roles=("CT", "PET", "masks")):
    """For each role the same names, with pictures that differ; masks of 0 and 255."""
    rng = np.random.default_rng(5)
    found = {role: {name: rng.integers(0, 256, shape) for name in names} for role in roles}
    if "masks" in found:
        found["masks"] = {name: 255 * (pixels > 200) for name, pixels in found["masks"].items()}
    return found
