"""What a person is given to correct: read back as other programs read it."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from medseg_sem_al.proposals import write_indexed

COLOURS = [(0, 0, 255), (0, 255, 255), (255, 126, 126)]


def grains(edge=40, seed=0):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(3, edge, edge)), (0, 2, 2))
    return smooth.argmax(0).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_values_are_ids_and_the_palette_has_the_colours(tmp_path, suffix):
    ids = grains()
    ids[:3] = 255
    write_indexed(ids, COLOURS, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), ids)
        shown = np.array(picture.convert("RGB"))
    assert np.array_equal(shown, np.array([*COLOURS, *[(255, 255, 255)] * 253], np.uint8)[ids])
