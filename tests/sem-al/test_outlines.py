"""Outlines for ImageJ: what is written is the mask, and what a person drew is read as ImageJ fills it."""

import zipfile

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from roifile import ImagejRoi, roiread
from scipy.ndimage import gaussian_filter

from medseg_core.errors import MedsegError
from medseg_sem_al import outlines
from medseg_sem_al.outlines import read_outlines, write_outlines


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


def test_outlines_filled_one_after_the_other_are_the_mask(tmp_path):
    ids, names = grains(), ["carbon", "SE", "AM"]
    assert write_outlines(ids, names, tmp_path / "a.zip") == len(list(outlines.outlines(ids, 3)))
    assert np.array_equal(filled(tmp_path / "a.zip", names, ids.shape), ids)


def test_an_outline_is_named_after_its_class_and_drawn_around_its_pixels(tmp_path):
    ids = np.zeros((6, 8), np.uint8)
    ids[2:4, 3:6] = 1
    write_outlines(ids, ["rest", "pore"], tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["0001_rest.roi", "0002_pore.roi"]
        points = ImagejRoi.frombytes(archive.read("0002_pore.roi")).coordinates()
    assert (points.min(0).tolist(), points.max(0).tolist()) == ([3.0, 2.0], [6.0, 4.0])


def test_more_parts_than_imagej_can_list_are_counted_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(outlines, "MOST_OUTLINES", 2)
    ids = np.zeros((9, 9), np.uint8)
    ids[1, 1] = ids[5:8, 5:8] = 1
    assert write_outlines(ids, ["rest", "pore"], tmp_path / "a.zip") == 3
    assert not (tmp_path / "a.zip").exists()


def test_what_was_written_is_read(tmp_path):
    ids, names = grains(), ["carbon", "SE", "AM"]
    write_outlines(ids, names, tmp_path / "a.zip")
    assert np.array_equal(read_outlines(tmp_path / "a.zip", names, ids.shape), ids)


def drawn(path, *rois):
    with zipfile.ZipFile(path, "w") as archive:
        for number, roi in enumerate(rois):
            archive.writestr(f"{number}.roi", roi.tobytes())
    return path


def polygon(name, *points):
    return ImagejRoi.frompoints(np.array(points, np.float32), name=name)


def test_a_pixel_belongs_to_an_outline_that_holds_its_centre(tmp_path):
    file = drawn(tmp_path / "a.zip", polygon("SE", (0.6, 0), (3.4, 0), (3.4, 2.4), (0.6, 2.4)))
    assert read_outlines(file, ["SE"], (3, 4)).tolist() == [[255, 0, 0, 255]] * 2 + [[255] * 4]


def test_a_later_outline_lies_over_an_earlier_one(tmp_path):
    square = ((0, 0), (2, 0), (2, 1), (0, 1))
    file = drawn(tmp_path / "a.zip", polygon("SE", *square), polygon("AM", (1, 0), (2, 0), (2, 1), (1, 1)))
    assert read_outlines(file, ["SE", "AM"], (1, 3)).tolist() == [[0, 1, 255]]


def test_any_line_is_filled_as_rays_tell(tmp_path):
    points = np.random.default_rng(0).uniform(-5, 35, (40, 2)).astype(np.float32)  # crosses itself, and leaves
    centres = np.mgrid[:30, :30][::-1].reshape(2, -1).T + 0.5
    turns = np.zeros(len(centres), int)
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):  # crossings of a ray to the right, edge by edge
        passes = (a[1] > centres[:, 1]) != (b[1] > centres[:, 1])
        turns += passes & (centres[:, 0] < a[0] + (centres[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1]))
    file = drawn(tmp_path / "a.zip", polygon("SE", *points))
    assert np.array_equal(read_outlines(file, ["SE"], (30, 30)) == 0, (turns % 2 == 1).reshape(30, 30))


@pytest.mark.parametrize(("name", "k"), [("SE", 1), ("0012_SE", 1), ("SE-1", 2), ("SE-2", 1), ("AM-1", 0), ("2_AM", 3)])
def test_an_outline_is_of_the_class_that_it_names(tmp_path, name, k):
    file = drawn(tmp_path / "a.zip", polygon(name, (0, 0), (1, 0), (1, 1), (0, 1)))
    assert read_outlines(file, ["AM", "SE", "SE-1", "2_AM"], (1, 1)).tolist() == [[k]]


def test_an_outline_of_no_class_is_refused(tmp_path):
    file = drawn(tmp_path / "a.zip", polygon("0137-0244", (0, 0), (1, 0), (1, 1)))
    with pytest.raises(MedsegError, match=r"the outline 0137-0244 names no class; rename it .* to one of AM, SE"):
        read_outlines(file, ["AM", "SE"], (1, 1))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"roitype": outlines.ROI_TYPE.POLYLINE}, "has no area"),
        ({"subtype": outlines.ROI_SUBTYPE.TEXT}, "has no area"),
        ({"options": outlines.ROI_OPTIONS.SPLINE_FIT}, "is bent; choose Edit > Selection > Interpolate"),
    ],
)
def test_what_imagej_fills_otherwise_is_refused(tmp_path, what, why):
    roi = polygon("SE", (0, 0), (1, 0), (1, 1))
    for name, value in what.items():
        setattr(roi, name, value)
    with pytest.raises(MedsegError, match=f"SE {why}"):
        read_outlines(drawn(tmp_path / "a.zip", roi), ["SE"], (1, 1))


def box(kind, **what):
    return ImagejRoi(roitype=kind, name="SE", left=3, top=5, right=64, bottom=45, **what)


def test_a_rounded_rectangle_is_refused(tmp_path):
    file = drawn(tmp_path / "a.zip", box(outlines.ROI_TYPE.RECT, rounded_rect_arc_size=9))
    with pytest.raises(MedsegError, match="SE is bent"):
        read_outlines(file, ["SE"], (50, 70))


def test_an_oval_is_an_ellipse(tmp_path):
    y, x = np.mgrid[:50, :70] + 0.5
    inside = ((x - 33.5) / 30.5) ** 2 + ((y - 25) / 20) ** 2 < 1
    ids = read_outlines(drawn(tmp_path / "a.zip", box(outlines.ROI_TYPE.OVAL)), ["SE"], (50, 70))
    assert np.array_equal(ids == 0, inside)


def test_a_point_that_is_no_number_is_refused(tmp_path):
    roi = polygon("SE", (0, 0), (1, 0), (1, 1))
    roi.subpixel_coordinates[1, 0] = np.nan
    with pytest.raises(MedsegError, match="SE is damaged"):
        read_outlines(drawn(tmp_path / "a.zip", roi), ["SE"], (1, 1))


def test_a_single_outline_whose_class_imagej_dropped_is_refused(tmp_path):
    (tmp_path / "a.roi").write_bytes(polygon("a", (0, 0), (1, 0), (1, 1)).tobytes())
    with pytest.raises(MedsegError, match="without the name of its class"):
        read_outlines(tmp_path / "a.roi", ["SE"], (1, 1))


@pytest.mark.parametrize("content", [b"Iout" + b"\1" * 70, b"half"])
def test_a_broken_outline_is_refused(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("0001_SE.roi", content)
    with pytest.raises(MedsegError, match="is no list of outlines"):
        read_outlines(tmp_path / "a.zip", ["SE"], (1, 1))


@pytest.mark.parametrize("content", [b"PK\x03\x04 half", b"", b"nothing"])
def test_a_broken_zip_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(MedsegError, match="is no list of outlines"):
        read_outlines(tmp_path / "a.zip", ["SE"], (1, 1))
