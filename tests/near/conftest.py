"""Balls and a run on them, fitted once for every test that needs one."""

import numpy as np
import pytest

from medseg_core.io import write_volume
from medseg_core.volume import Volume
from medseg_near.fit import fit
from medseg_near.prepare import prepare
from medseg_near.settings import FitConfig, PrepareConfig
from medseg_near.shapes import read_shapes

SIZE = 24
TURNED = np.array([[0, -1.5, 0, 20], [1.0, 0, 0, -7], [0, 0, 2.0, 3], [0, 0, 0, 1]])  # X to the front, Y to the right
SMALL = {
    "net": "pointwise",
    "latent": 8,
    "points": 512,
    "resolution": 16,
    "epochs": 1,
    "accumulate": 1,
    "device": "cpu",
}


def ball_of(radius_mm, *, size=SIZE, affine=TURNED, centre=(11, 12, 10)):
    """(X, Y, Z) bool: what lies within a radius of a voxel's middle."""
    steps_mm = (np.moveaxis(np.indices((size,) * 3), 0, -1) - centre) @ affine[:3, :3].T
    return np.linalg.norm(steps_mm, axis=-1) <= radius_mm


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """Label maps of three balls of 5, 6 and 7 mm, id 3."""
    folder = tmp_path_factory.mktemp("balls") / "labels"
    for radius_mm in (5, 6, 7):
        write_volume(Volume(3 * ball_of(radius_mm).astype(np.uint8), TURNED), folder / f"ball_{radius_mm}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def cache(balls, tmp_path_factory):
    """What `prepare` makes of them."""
    out = tmp_path_factory.mktemp("cache") / "cache"
    prepare(balls, out, PrepareConfig(margin_mm=4), label="3")
    return out


@pytest.fixture(scope="session")
def shapes(cache):
    """The balls, by radius."""
    return read_shapes(cache)


@pytest.fixture(scope="session")
def run(cache, tmp_path_factory):
    """A run of one epoch on the first two; good for everything but its scores."""
    out = tmp_path_factory.mktemp("runs") / "fit"
    fit(cache, out, FitConfig(**SMALL), only=("ball_5", "ball_6"))
    return out
