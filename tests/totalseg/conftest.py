"""One small phantom, prepared and trained once for every test that needs a run."""

import pytest

from medseg_totalseg.phantom import phantom
from medseg_totalseg.settings import TotalsegConfig
from medseg_totalseg.train import train


@pytest.fixture(scope="session")
def quick():
    """Settings of a run of seconds."""
    structures = ("liver", "spleen", "bones")
    return TotalsegConfig(epochs=2, size=64, widths=(4, 8, 16), batch_size=16, device="cpu", structures=structures)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """A released folder of four phantom scans, with meta.csv."""
    return phantom(tmp_path_factory.mktemp("phantom") / "data", num_cases=4)


@pytest.fixture(scope="session")
def run(cohort, quick, tmp_path_factory):
    """A run of two epochs on it; good for everything but its scores."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(cohort, out, quick)
    return out
