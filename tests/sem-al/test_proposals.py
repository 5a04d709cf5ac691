"""What a person is given to correct: read back as other programs read it."""

import numpy as np
import pytest
from PIL import Image

from medseg_sem_al.proposals import write_indexed

COLOURS = [(0, 0, 255), (0, 255, 255), (255, 126, 126)]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_values_are_ids_and_the_palette_has_the_colours(tmp_path, suffix):
    ids = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8)
    write_indexed(ids, COLOURS, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), ids)
        shown = np.array(picture.convert("RGB"))
    assert np.array_equal(shown, np.array([*COLOURS, *[(255, 255, 255)] * 253], np.uint8)[ids])
