"""The 17 segments on rings whose segments are known by hand."""

import logging
from itertools import product

import numpy as np
import pytest

from medseg_cardiac.orientation import Directions, Turn, axes_of
from medseg_cardiac.segments import SEGMENTS, aha_segments, centre_of, has_cavity
from medseg_core.errors import MedsegError

PICTURE = axes_of(None)
CENTRE = np.array([30.0, 34.0])
EIGHT = [np.array(rows) for a, b in product((1, -1), repeat=2) for rows in ([[a, 0], [0, b]], [[0, a], [b, 0]])]


def ring(inner: float = 12, outer: float = 20, *, stretch: float = 1.0) -> np.ndarray:
    """(61, 81) bool about CENTRE, wider by `stretch` along W."""
    h, w = np.indices((61, 81))
    radius = np.hypot(h - CENTRE[0], (w - CENTRE[1]) / stretch)
    return (inner <= radius) & (radius <= outer)


def at(segments: np.ndarray, clock_deg: float, *, radius: float = 16) -> int:
    """The id at an angle of the picture: 0 right, 90 up, 180 left."""
    turn = np.radians(clock_deg)
    h, w = np.round(CENTRE + radius * np.array([-np.sin(turn), np.cos(turn)])).astype(int)
    return int(segments[h, w])


def levels(myo: np.ndarray, *, apex_first: bool = False) -> list[int]:
    """The smallest id of each slice."""
    segments = aha_segments(myo, directions=PICTURE, apex_first=apex_first)
    return [int(plane[plane > 0].min(initial=99)) for plane in segments]


def test_basal_and_mid_ids_run_against_the_clock_from_anterior_and_meet_at_the_septum():
    basal, mid, _ = aha_segments(np.stack([ring()] * 3), directions=PICTURE, apex_first=False)
    around = (90, 63, 117, 125, 175, 185, 235, 245, 295, 305, 355, 5, 55)
    expected = [1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [at(basal, deg) for deg in around] == expected
    assert [at(mid, deg) for deg in around] == [i + 6 for i in expected]


def test_apical_ids_are_four_quarters_about_anterior_septum_inferior_and_lateral():
    apical = aha_segments(np.stack([ring()] * 3), directions=PICTURE, apex_first=False)[2]
    around = (90, 50, 130, 140, 180, 220, 230, 270, 310, 320, 0, 40)
    assert [at(apical, deg) for deg in around] == [13, 13, 13, 14, 14, 14, 15, 15, 15, 16, 16, 16]


def test_each_segment_of_a_ring_has_its_share_of_the_area():
    segments = aha_segments(np.stack([ring()] * 3), directions=PICTURE, apex_first=False)
    areas = np.bincount(segments.ravel(), minlength=18)[1:17]
    assert areas[:12] == pytest.approx(ring().sum() / 6, rel=0.05)
    assert areas[12:] == pytest.approx(ring().sum() / 4, rel=0.05)


@pytest.mark.parametrize("matrix", EIGHT, ids=str)
def test_segments_turn_and_mirror_with_the_plane(matrix):
    myo, turn = np.stack([ring()] * 3), Turn(matrix)
    directions = axes_of(None, septum_deg=163)  # no pixel lies on a border
    turned = Directions(septum=matrix @ directions.septum, anterior=matrix @ directions.anterior, said="")
    expected = turn.plane(aha_segments(myo, directions=directions, apex_first=False))
    np.testing.assert_array_equal(aha_segments(turn.plane(myo), directions=turned, apex_first=False), expected)


def test_pixels_twice_as_long_as_wide_leave_a_round_ventricle_in_equal_sixths():
    myo = ring(8, 14, stretch=2.0)[None]
    segments = aha_segments(myo, directions=PICTURE, apex_first=False, spacing_mm=(2.0, 1.0))
    assert np.bincount(segments.ravel(), minlength=13)[7:13] == pytest.approx(myo.sum() / 6, rel=0.05)


@pytest.mark.parametrize(
    ("num", "first_ids"),
    [(1, [7]), (2, [1, 13]), (3, [1, 7, 13]), (4, [1, 7, 7, 13]), (6, [1, 1, 7, 7, 13, 13])],
)
def test_slices_are_cut_into_thirds_by_their_middles(num, first_ids):
    assert levels(np.stack([ring()] * num)) == first_ids
    assert levels(np.stack([ring()] * num), apex_first=True) == first_ids[::-1]


def test_a_slice_without_myocardium_counts_in_the_length_and_none_does_beyond_the_ends():
    nothing = np.zeros_like(ring())
    assert levels(np.stack([nothing, ring(), ring(), nothing, nothing, nothing, ring()])) == [99, 1, 1, 99, 99, 99, 13]


def test_the_cap_is_the_most_apical_slice_where_that_has_no_cavity():
    stack = np.stack([ring(), ring(), ring(), ring(0, 9)])
    assert levels(stack) == [1, 7, 13, 17]
    assert levels(stack[::-1], apex_first=True) == [17, 13, 7, 1]


def test_without_a_slice_beyond_the_cavity_the_cap_is_absent_and_the_log_says_so(caplog):
    with caplog.at_level(logging.DEBUG, logger="medseg_cardiac.segments"):
        assert levels(np.stack([ring()] * 3)) == [1, 7, 13]
    assert "segment 17 (apex) is absent" in caplog.text


def test_a_wall_open_at_a_valve_keeps_its_centre_and_its_cavity():
    wall = ring()
    h, w = np.indices(wall.shape)
    wall &= ~((w > CENTRE[1]) & (np.abs(h - CENTRE[0]) < 10))
    assert has_cavity(wall)
    assert centre_of(wall) == pytest.approx(CENTRE, abs=0.5)


def test_a_pinhole_is_no_cavity():
    wall = ring(0, 9)
    wall[26, 30] = False
    assert not has_cavity(wall)


def test_the_centre_is_that_of_the_cavity_where_the_wall_is_thicker_on_one_side():
    wall = ring(0, 20)
    h, w = np.indices(wall.shape)
    wall &= np.hypot(h - CENTRE[0], w - CENTRE[1] - 4) > 10
    assert centre_of(wall) == pytest.approx([30, 38], abs=0.01)


def test_names_are_those_of_the_standard():
    assert {i: SEGMENTS[i] for i in (1, 2, 6, 9, 14, 17)} == {
        1: "basal anterior", 2: "basal anteroseptal", 6: "basal anterolateral", 9: "mid inferoseptal",
        14: "apical septal", 17: "apex",
    }  # fmt: skip
    assert len(set(SEGMENTS.values())) == 17


@pytest.mark.parametrize(
    ("myo", "word"),
    [
        (np.zeros((2, 5, 5)), "empty in all 2 slices"),
        (np.zeros((5, 5)), "not \\(slices, H, W\\)"),
        (np.full((1, 2, 2), np.nan), "4 NaN"),
    ],
)
def test_what_is_no_myocardium_is_refused(myo, word):
    with pytest.raises(MedsegError, match=word):
        aha_segments(myo, directions=PICTURE, apex_first=False)
