"""Made-up micrographs: known phases that brightness alone does not tell apart."""

import json
from collections import Counter

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture
from medseg_sem_al.colours import guessed
from medseg_sem_al.phantom import PIXEL_NM, phantom


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("sem") / "data", num_images=6, num_labelled=6, size=128)


def ids_of(path):
    return guessed(Counter({"#0000ff": 1})).decode(read_picture(path).pixels)[0]


def test_masks_have_the_true_areas(made):
    truth = json.loads((made / "truth.json").read_text())
    for name, areas in truth["areas"].items():
        ids = ids_of(made / "labeled" / f"{name}.png")
        assert np.bincount(ids.ravel(), minlength=3).tolist() == list(areas.values())


def test_files_state_the_size_of_a_pixel(made):
    assert read_picture(made / "raw" / "s00_000.tif").pixel_nm == pytest.approx(PIXEL_NM)


def test_no_brightness_tells_se_from_am(made):
    """The best of all thresholds, chosen with the truth in hand, is wrong in more than a fifth of the grains."""
    grey = np.concatenate([read_picture(p).pixels.ravel() for p in sorted((made / "raw").glob("*.tif"))])
    ids = np.concatenate([ids_of(p).ravel() for p in sorted((made / "labeled").glob("*.png"))])
    grains = grey[ids > 0], ids[ids > 0] == 2
    best = max(float(((grains[0] > t) == grains[1]).mean()) for t in range(256))
    assert 0.5 < best < 0.8


def test_frames_of_a_sequence_are_neighbours_and_sequences_are_not(made):
    ids = {name: ids_of(made / "labeled" / f"{name}.png") for name in ("s00_000", "s00_001", "s01_000")}
    assert (ids["s00_000"] == ids["s00_001"]).mean() > 0.7 > (ids["s00_000"] == ids["s01_000"]).mean()


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(MedsegError, match="is no phantom"):
        phantom(tmp_path)
