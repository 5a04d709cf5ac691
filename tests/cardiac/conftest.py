"""One small phantom and three runs on it, trained once for every test that needs a run."""

import pytest

from medseg_cardiac.phantom import phantom
from medseg_cardiac.settings import MotionConfig, RegistrationConfig, SegmentationConfig
from medseg_cardiac.train import train_motion, train_registration, train_segmentation

SMALL = {"size": 48, "crop": 48, "epochs": 1, "device": "cpu", "precision": "fp32", "val": 0.34}


@pytest.fixture(scope="session")
def small():
    """Settings of a run of a second, whatever it trains."""
    return SMALL


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Three phantom patients of two slices, six frames and 48 pixels."""
    folder = tmp_path_factory.mktemp("cohort") / "data"
    phantom(folder, num_cases=3, size=48, num_slices=2, num_frames=6, seed=3)
    return folder


@pytest.fixture(scope="session")
def motion(cohort, tmp_path_factory):
    """A motion run; good for everything but its scores."""
    out = tmp_path_factory.mktemp("runs") / "motion"
    train_motion(cohort, out, MotionConfig(pairs_per_slice=1, **SMALL))
    return out


@pytest.fixture(scope="session")
def registration(cohort, tmp_path_factory):
    """Likewise."""
    out = tmp_path_factory.mktemp("runs") / "registration"
    train_registration(cohort, out, RegistrationConfig(**SMALL))
    return out


@pytest.fixture(scope="session")
def run(cohort, motion, registration, tmp_path_factory):
    """A segmentation run with both of them."""
    out = tmp_path_factory.mktemp("runs") / "segmentation"
    train_segmentation(cohort, out, SegmentationConfig(width=4, **SMALL), motion=motion, registration=registration)
    return out
