"""What a person is given to correct: read back as other programs read it."""

import zipfile

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image
from roifile import ImagejRoi, roiread
from scipy.ndimage import gaussian_filter

from medseg_sem_al import proposals
from medseg_sem_al.proposals import write_indexed, write_outlines

COLOURS = [(0, 0, 255), (0, 255, 255), (255, 126, 126)]


def grains(edge=40, seed=0):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(3, edge, edge)), (0, 2, 2))
    return smooth.argmax(0).astype(np.uint8)


def filled(file, names, shape):
    """The mask again: every outline filled, one over the other."""
    ids, centres = np.full(shape, 255, np.uint8), np.mgrid[: shape[0], : shape[1]][::-1].reshape(2, -1).T + 0.5
    for roi in roiread(file):
        inside = Outline(roi.coordinates()).contains_points(centres).reshape(shape)
        ids[inside] = names.index(roi.name.split("_")[1])
    return ids


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


def test_outlines_filled_one_after_the_other_are_the_mask(tmp_path):
    ids, names = grains(), ["carbon", "SE", "AM"]
    assert write_outlines(ids, names, tmp_path / "a.zip") == 0
    assert np.array_equal(filled(tmp_path / "a.zip", names, ids.shape), ids)


def test_an_outline_is_named_after_its_class_and_drawn_around_its_pixels(tmp_path):
    ids = np.zeros((6, 8), np.uint8)
    ids[2:4, 3:6] = 1
    write_outlines(ids, ["rest", "pore"], tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["0001_rest.roi", "0002_pore.roi"]
        points = ImagejRoi.frombytes(archive.read("0002_pore.roi")).coordinates()
    assert (points.min(0).tolist(), points.max(0).tolist()) == ([3.0, 2.0], [6.0, 4.0])


def test_the_smallest_outlines_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "MOST_OUTLINES", 2)
    ids = np.zeros((9, 9), np.uint8)
    ids[1, 1] = ids[5:8, 5:8] = 1
    assert write_outlines(ids, ["rest", "pore"], tmp_path / "a.zip") == 1
    assert [roi.name for roi in roiread(tmp_path / "a.zip")] == ["0001_rest", "0002_pore"]
