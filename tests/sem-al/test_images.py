"""Micrographs as numbers: grey, banner, masks of their size."""

import numpy as np
import pytest
from PIL import Image

from medseg_core.errors import MedsegError
from medseg_core.io import write_picture
from medseg_core.volume import Picture
from medseg_sem_al.images import banner_of, facts_of, read_grey, read_mask, see

NOISE = np.random.default_rng(0).integers(40, 200, (200, 160)).astype(np.uint8)


def with_banner(rows):
    """Black below, with some white letters."""
    foot = np.zeros((rows, 160), np.uint8)
    foot[4 : rows - 4, 10:60:3] = 255
    return np.concatenate([NOISE, foot])


@pytest.mark.parametrize(
    ("pixels", "value"),
    [
        (np.full((2, 2), 51, np.uint8), 0.2),
        (np.full((2, 2), 13107, np.uint16), 0.2),
        (np.full((2, 2), 0.2, np.float32), 0.2),
        (np.full((2, 2, 3), 51, np.uint8), 0.2),
    ],
)
def test_whole_numbers_are_scaled_by_their_type(tmp_path, pixels, value):
    write_picture(Picture(pixels), tmp_path / "a.tif")
    grey, _, has_colours = read_grey(tmp_path / "a.tif")
    assert (grey.dtype, has_colours) == (np.float32, False)
    np.testing.assert_allclose(grey, value, rtol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.array([[-1, 5]], np.int16), "below 0"),
        (np.array([[0.5, 255]], np.float32), "above the white"),
        (np.array([[0.5, -0.1]], np.float32), "below 0"),
        (np.array([[0, 70000]], np.int32), "above the white"),
        (np.array([[0.5, np.nan]], np.float32), "not finite"),
    ],
)
def test_numbers_of_no_known_white_are_refused(tmp_path, pixels, why):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(MedsegError, match=why):
        read_grey(tmp_path / "a.tif")


def test_colours_become_the_mean_of_their_channels(tmp_path):
    write_picture(Picture(np.array([[(0, 51, 102)]], np.uint8)), tmp_path / "a.png")
    grey, _, has_colours = read_grey(tmp_path / "a.png")
    assert (grey.tolist(), has_colours) == ([[pytest.approx(0.2)]], True)


def test_several_pages_are_refused(tmp_path):
    page = Image.fromarray(NOISE)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(MedsegError, match="2 pages"):
        read_grey(tmp_path / "a.tif")


@pytest.mark.parametrize("rows", [20, 40])
def test_a_banner_is_found(rows):
    assert banner_of(with_banner(rows) / 255) == rows


def test_a_picture_without_banner_loses_nothing():
    assert banner_of(NOISE / 255) == banner_of(np.zeros((200, 160))) == 0


def test_shared_micrographs_have_no_banner(data):
    for path in sorted((data / "sem" / "ebc" / "images").glob("*.tif"))[::4]:
        assert banner_of(read_grey(path)[0]) == 0


@pytest.mark.parametrize("rows", [200, 230])
def test_a_mask_may_be_drawn_with_the_banner_or_without(tmp_path, rows):
    mask = np.zeros((rows, 160), np.uint8)
    mask[199] = 1
    write_picture(Picture(mask), tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png", (200, 160), 30)
    assert (found.shape, found[199].min()) == ((200, 160), 1)


def test_a_mask_of_another_size_is_refused(tmp_path):
    write_picture(Picture(np.zeros((160, 200), np.uint8)), tmp_path / "m.png")
    with pytest.raises(MedsegError, match="is 200x160 and its image 160x200"):
        read_mask(tmp_path / "m.png", (200, 160), 0)


def test_what_is_told_leaves_the_banner_out(tmp_path):
    write_picture(Picture(with_banner(40), 12.0), tmp_path / "a.tif")
    seen = see(tmp_path / "a.tif", None, banner=-1)
    facts = facts_of(seen)
    assert (facts["size"], facts["banner"], round(seen.pixel_nm, 3)) == ([200, 160], 40, 12.0)
    assert facts["mean"] == pytest.approx(NOISE.mean() / 255, abs=1e-4)
    assert facts["std"] == pytest.approx(NOISE.std() / 255, abs=1e-4)


def test_more_rows_than_there_are_cannot_be_cut(tmp_path):
    write_picture(Picture(NOISE), tmp_path / "a.png")
    with pytest.raises(MedsegError, match="has 200 rows, and 200 are to be cut"):
        see(tmp_path / "a.png", None, banner=200)
