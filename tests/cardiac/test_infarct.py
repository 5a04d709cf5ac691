"""Mass, share and transmurality of infarcts drawn by hand."""

import json
import math

import numpy as np
import pytest

from medseg_cardiac.infarct import summarise
from medseg_cardiac.orientation import axes_of
from medseg_cardiac.segments import aha_segments
from medseg_core.errors import MedsegError

CENTRE = np.array([40.0, 44.0])
INNER, OUTER = 18.0, 30.0


def polar(spacing_mm: tuple[float, float] = (1.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    """Radius in mm and degrees (0 right, 90 up) about CENTRE on (81, 91) pixels of 1 mm, or finer ones."""
    h, w = np.indices((round(81 / spacing_mm[0]), round(91 / spacing_mm[1])))
    down, right = h * spacing_mm[0] - CENTRE[0], w * spacing_mm[1] - CENTRE[1]
    return np.hypot(down, right), np.degrees(np.arctan2(-down, right)) % 360


def case(depth: tuple[float, float], *, middle_deg: float = 90, width_deg: float = 40, num: int = 3, **sizes):
    """An infarct between two depths of the wall (0 endo, 1 epi) in a sector, in all of `num` slices."""
    sizes = {"spacing_mm": (1.0, 1.0), "thickness_mm": 10.0} | sizes
    radius, deg = polar(sizes["spacing_mm"])
    myo = np.stack([(radius >= INNER) & (radius < OUTER)] * num)
    low, high = (INNER + share * (OUTER - INNER) for share in depth)
    sector = np.abs((deg - middle_deg + 180) % 360 - 180) < width_deg / 2
    infarct = myo & sector & (radius >= low) & (radius < high)
    segments = aha_segments(myo, directions=axes_of(None), apex_first=False, spacing_mm=sizes["spacing_mm"])
    return summarise(infarct, myo, segments=segments, **sizes)


def test_ten_voxels_of_two_by_three_by_ten_mm_weigh_six_tenths_of_a_ml_times_the_density():
    myo = np.zeros((2, 9, 9), bool)
    myo[:, 2:7, 2:7], myo[:, 4, 4] = True, False
    infarct = np.zeros_like(myo)
    infarct[0, 2:4, 2:7] = True
    segments = np.where(myo, 7, 0)
    found = summarise(infarct, myo, segments=segments, spacing_mm=(2.0, 3.0), thickness_mm=10.0)
    assert found.mass_g == pytest.approx(0.6 * 1.05)
    assert found.lv_mass_g == pytest.approx(48 * 0.06 * 1.05)
    assert found.share_of_lv == pytest.approx(10 / 48)
    assert (found.num_slices, found.num_outlined) == (1, 2)


@pytest.mark.parametrize(("depth", "share"), [((0, 0.5), 0.5), ((0, 0.25), 0.25), ((0.5, 1), 0.5), ((0, 1), 1.0)])
def test_transmurality_is_the_share_of_the_wall_along_the_chords(depth, share):
    found = case(depth).segments[1]
    assert found.transmurality == pytest.approx(share, abs=0.05)
    assert found.transmurality_most == pytest.approx(share, abs=0.1)


def test_the_share_of_a_segment_is_of_its_area():
    whole = case((0, 1), middle_deg=90, width_deg=30)  # half of segment 1, of 60 degrees; a third of 13, of 90
    assert whole.segments[1].share == pytest.approx(0.5, abs=0.02)
    assert whole.segments[13].share == pytest.approx(1 / 3, abs=0.02)
    assert whole.segments[1].num_slices == 1


def test_segments_without_infarct_are_zero_and_absent_ones_nan_and_counted():
    found = case((0, 0.5), middle_deg=90, width_deg=30)
    assert (found.segments[4].share, found.segments[4].transmurality) == (0.0, 0.0)
    assert math.isnan(found.segments[17].share)
    assert found.num_absent == 1
    alone = case((0, 0.5), num=1)
    assert alone.num_absent == 11
    assert [i for i, share in enumerate(alone.values("share"), 1) if not math.isnan(share)] == list(range(7, 13))
    assert any("11 of 17 segments are in no slice: 1, 2, 3" in line for line in alone.said)


def test_pixels_of_unequal_sides_change_nothing():
    even, uneven = case((0, 0.5)), case((0, 0.5), spacing_mm=(0.5, 1.0))
    assert uneven.mass_g == pytest.approx(even.mass_g, rel=0.03)
    assert uneven.segments[1].transmurality == pytest.approx(even.segments[1].transmurality, abs=0.03)
    assert uneven.segments[1].share == pytest.approx(even.segments[1].share, abs=0.02)


def test_infarct_outside_of_the_myocardium_does_not_count_and_is_said():
    radius, _ = polar()
    myo = ((radius >= INNER) & (radius < OUTER))[None]
    segments = aha_segments(myo, directions=axes_of(None), apex_first=False)
    found = summarise(radius[None] < INNER, myo, segments=segments, spacing_mm=(1.0, 1.0), thickness_mm=8.0)
    assert (found.mass_g, found.share_of_lv, found.num_slices) == (0.0, 0.0, 0)
    outside = int((radius < INNER).sum())
    assert f"{outside} of {outside} infarct voxels lie outside of the myocardium and do not count" in found.said


def test_the_cap_has_a_share_and_no_transmurality():
    radius, _ = polar()
    myo = np.stack([(radius >= INNER) & (radius < OUTER)] * 3 + [radius < 12])
    segments = aha_segments(myo, directions=axes_of(None), apex_first=False)
    found = summarise(myo, myo, segments=segments, spacing_mm=(1.0, 1.0), thickness_mm=8.0)
    assert found.segments[17].share == 1.0
    assert math.isnan(found.segments[17].transmurality)
    assert found.num_absent == 0


def test_without_a_thickness_there_is_a_share_and_no_mass():
    found = case((0, 0.5), thickness_mm=None)
    assert math.isnan(found.mass_g)
    assert 0 < found.share_of_lv < 1
    assert any("no mass" in line for line in found.said)


def test_as_json_holds_no_nan_and_names_the_segments():
    told = json.loads(json.dumps(case((0, 0.5), thickness_mm=None).as_json(), allow_nan=False))
    assert told["mass_g"] is None
    assert told["segments"]["apex"] == {
        "id": 17, "share": None, "transmurality": None, "transmurality_most": None, "num_slices": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("infarct", "sizes", "word"),
    [
        (np.zeros((1, 4, 5)), {}, "different grids"),
        (np.full((1, 5, 5), np.nan), {}, "the infarct holds 25 NaN"),
        (np.zeros((1, 5, 5)), {"thickness_mm": 0.0}, "1 x 1 x 0 mm have no volume"),
    ],
)
def test_what_has_no_answer_is_refused(infarct, sizes, word):
    myo = np.ones((1, 5, 5), bool)
    with pytest.raises(MedsegError, match=word):
        summarise(infarct, myo, segments=myo * 7, **({"spacing_mm": (1.0, 1.0), "thickness_mm": 1.0} | sizes))
