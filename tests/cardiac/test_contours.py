import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from scipy import ndimage

from medseg_cardiac.contours import find_contours, match_frames, outline, rasterise, read_contour
from medseg_core.errors import MedsegError

RNG = np.random.default_rng(0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_line_of_a_file_is_column_then_row_and_a_repeated_end_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("10.0 2.5\n\n12.0 2.5\n12.0, 4.0\n10.0 2.5\n")
    assert read_contour(tmp_path / "a.txt").tolist() == [[2.5, 10.0], [2.5, 12.0], [4.0, 12.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 2\n3 four\n5 6\n", "line 2 of .* is '3 four'"),
        ("1 2\n3 4 5\n5 6\n", "line 2"),
        ("1 2\nnan 4\n5 6\n", "line 2"),
        ("1 2\n3 4\n", "2 points"),
        ("", "0 points"),
        (b"\xff\xfe\xff", "cannot read"),
    ],
)
def test_a_file_that_is_no_contour_is_refused_by_line(tmp_path, text, said):
    path = tmp_path / "a.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MedsegError, match=said):
        read_contour(path)


def test_contours_are_found_by_name_and_manual_ones_go_first(tmp_path):
    for name in (
        *("IM-0001-0068-icontour-manual.txt", "IM-0001-0068-icontour-auto.txt", "IM-0001-0068-ocontour-auto.txt"),
        *("IM-0001-0070-icontour.txt", "IM-0001-0068-p1contour-manual.txt", "notes.txt"),
    ):
        (tmp_path / name).touch()
    found = find_contours(tmp_path)
    assert sorted(found) == ["IM-0001-0068", "IM-0001-0070"]
    assert found["IM-0001-0068"].inner.name == "IM-0001-0068-icontour-manual.txt"
    assert found["IM-0001-0068"].outer.name == "IM-0001-0068-ocontour-auto.txt"
    assert (found["IM-0001-0070"].number, found["IM-0001-0070"].outer) == (70, None)


def test_a_folder_without_contours_is_refused(tmp_path):
    with pytest.raises(MedsegError, match="holds no contour; name them like"):
        find_contours(tmp_path)
    with pytest.raises(MedsegError, match="there is no folder"):
        find_contours(tmp_path / "no")


def test_contours_go_to_the_frame_of_their_name_or_of_their_last_number(tmp_path):
    for name in ("IM-0001-0068", "IM-0001-0070"):
        (tmp_path / f"{name}-icontour-manual.txt").touch()
    found = find_contours(tmp_path)
    assert {f: d.number for f, d in match_frames(found, ["0067", "0068", "70"]).items()} == {"0068": 68, "70": 70}
    assert list(match_frames(found, ["IM-0001-0068", "IM-0002-0001"])) == ["IM-0001-0068"]
    with pytest.raises(MedsegError, match="number 68 may belong to s1-68 or s2-68"):
        match_frames(found, ["s1-68", "s2-68"])
    (tmp_path / "IM-0002-0068-icontour-manual.txt").touch()
    with pytest.raises(MedsegError, match="number 68"):
        match_frames(find_contours(tmp_path), ["0068"])


def test_a_rectangle_holds_the_pixels_between_its_edges_and_those_on_them():
    square = np.array([[1, 2], [1, 5], [4, 5], [4, 2]])
    assert np.argwhere(rasterise(square, (8, 10))).tolist() == [[h, w] for h in (1, 2, 3, 4) for w in (2, 3, 4, 5)]
    assert rasterise(square + 0.5, (8, 10)).sum() == 9
    diamond = np.array([[0, 2], [2, 4], [4, 2], [2, 0]])
    assert rasterise(diamond, (5, 5)).sum(axis=1).tolist() == [1, 3, 5, 3, 1]


def test_a_circle_has_its_area_wherever_its_first_point_and_in_either_direction():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = 30.3 + 20 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    mask = rasterise(circle, (64, 70))
    assert mask.sum() == pytest.approx(np.pi * 20**2, rel=0.01)
    np.testing.assert_array_equal(rasterise(np.roll(circle[::-1], 77, axis=0), (64, 70)), mask)


def test_what_lies_beyond_the_picture_is_cut():
    square = np.array([[-5.0, -5.0], [-5.0, 2.5], [20.0, 2.5], [20.0, -5.0]])
    expected = np.zeros((4, 6), bool)
    expected[:, :3] = True
    np.testing.assert_array_equal(rasterise(square, (4, 6)), expected)
    assert not rasterise(square - (0, 10), (4, 6)).any()
    assert not rasterise(square - (-100, 0), (4, 6)).any()


@pytest.mark.parametrize("seed", range(4))
def test_polygons_that_do_not_cross_themselves_hold_the_pixels_that_matplotlib_finds(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    points = 20 + rng.uniform(3, 18, (12, 1)) * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    centres = np.argwhere(np.ones((40, 44)))
    inside = Polygon(points).contains_points(centres).reshape(40, 44)
    np.testing.assert_array_equal(rasterise(points, (40, 44)), inside)


def test_a_line_that_crosses_itself_is_even_odd():
    twice = np.array([[0, 0], [0, 6], [6, 6], [6, 0]] * 2) + 0.5
    assert not rasterise(twice, (8, 8)).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_outlines_of_a_mask_hold_its_pixels_and_leave_its_holes(seed):
    noise = np.random.default_rng(seed).random((30, 35))
    mask = ndimage.gaussian_filter(noise, 2) > 0.5
    lines = outline(mask)
    assert len(lines) >= ndimage.label(mask)[1]
    inside = np.zeros(mask.shape, bool)
    for line in lines:
        inside ^= rasterise(line, mask.shape)
        assert line[0].tolist() != line[-1].tolist()
    np.testing.assert_array_equal(inside, mask)


def test_real_contours_agree_with_the_masks_that_others_made_of_them(data):
    for folder in sorted((data / "cmr_cine").glob("SCD*")):
        read_by = {}
        for phase in ("ED", "ES"):
            path = folder / f"derived/labels/cmr_LV_mask/{folder.name}_{phase}.nii.gz"
            read_by[phase] = np.asarray(nib.load(path).dataobj) > 0
        myo = np.asarray(nib.load(folder / f"derived/labels/cmr_Myo_mask/{folder.name}.nii.gz").dataobj) > 0
        for k, about in enumerate(json.loads((folder / "info.json").read_text())["slices"]):
            names = [f"{about['frames'][0] + about[f'{phase}_frame_index']:04d}" for phase in ("ED", "ES")]
            found = match_frames(find_contours(folder / "contours"), names)
            filled = [rasterise(read_contour(Path(found[name].inner)), (256, 256)) for name in names]
            assert min(dice(filled[0], read_by["ED"][k]), dice(filled[1], read_by["ES"][k])) > 0.999
            wall = rasterise(read_contour(Path(found[names[0]].outer)), (256, 256)) & ~filled[0]
            assert dice(wall, myo[k]) > 0.999
            assert found[names[1]].outer is None
