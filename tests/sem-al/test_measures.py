"""Numbers about structure: by hand, from geometry, and from the theory of a random structure."""

import math

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.intervals import intervals
from medseg_sem_al.measures import contacts, fraction_interval, interval_within, particles, phases

NAMES = ("matrix", "grain", "pore")
UNITS = {"px": None, "um": 20.0}
EDGE = {"px": 1, "um": 0.02}


def grid(edge):
    return np.mgrid[:edge, :edge] - edge / 2 - np.array([0.3, -0.2])[:, None, None]


def disc(radius, *, edge=128):
    return (np.hypot(*grid(edge)) <= radius).astype(np.uint8)


def bar(length, width, angle, *, edge=256):
    y, x = grid(edge)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return ((abs(c * x + s * y) <= length / 2) & (abs(c * y - s * x) <= width / 2)).astype(np.uint8)


def discs_at_random(rng, *, edge, radius, share):
    """A window of a Boolean model: discs at independent places, so many that they cover this share on the average."""
    mask = np.zeros((edge, edge), np.uint8)
    num = rng.poisson(-math.log(1 - share) / (math.pi * radius**2) * (edge + 2 * radius) ** 2)
    for row, column in rng.uniform(-radius, edge + radius, (num, 2)):
        y0, x0 = max(0, math.ceil(row - radius)), max(0, math.ceil(column - radius))
        part = mask[y0 : max(0, math.floor(row + radius) + 1), x0 : max(0, math.floor(column + radius) + 1)]
        y, x = np.ogrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
        part[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 1
    return mask


def grains(mask, **how):
    return [row for row in particles(mask, NAMES, **{"pixel_nm": None, **how}) if row["class"] == "grain"]


def length_of(mask):
    (row,) = contacts(mask, NAMES, pixel_nm=None)
    return row["length_px"]


# phases


def test_shares_are_of_what_was_looked_at():
    mask = np.array([[0, 0, 1], [0, 255, 255]], np.uint8)
    assert [row["share"] for row in phases(mask, NAMES, pixel_nm=None)] == [0.75, 0.25, 0.0]


def test_areas_are_in_micrometres_where_the_pixel_is_known():
    mask = np.repeat(np.uint8([[0], [1]]), 50, axis=1)  # 50 pixels of 0.0004 um2 of each
    assert phases(mask, NAMES, pixel_nm=20.0)[1]["area_um2"] == pytest.approx(0.02)
    assert phases(mask, NAMES, pixel_nm=None)[1]["area_px2"] == 50


def test_particles_are_counted_through_corners_and_without_specks():
    mask = np.zeros((9, 9), np.uint8)
    mask[1:3, 1:3] = mask[3:5, 3:5] = 1  # one, by a corner
    mask[7, 7] = 1  # a speck
    assert phases(mask, NAMES, pixel_nm=None, least=2)[1]["num_particles"] == 1
    assert phases(mask, NAMES, pixel_nm=None, least=1)[1]["num_particles"] == 2


@pytest.mark.parametrize("is_half_seen", [False, True])
def test_boundary_per_area_of_random_discs_is_that_of_theory(is_half_seen):
    """L_A = density * 2 pi r * (1 - share): what of each circle no other disc covers."""
    rng, found = np.random.default_rng(0), []
    for _ in range(8):
        mask = discs_at_random(rng, edge=512, radius=16, share=0.4)
        if is_half_seen:
            mask[:, np.arange(512) % 8 < 4] = 255
        found.append(phases(mask, NAMES, pixel_nm=None)[1]["boundary_per_px"])
    theory = -math.log(1 - 0.4) / (math.pi * 16**2) * 2 * math.pi * 16 * (1 - 0.4)
    assert np.mean(found) == pytest.approx(theory, rel=0.04)


def test_boundary_per_area_is_per_micrometre_where_the_pixel_is_known():
    by_pixel, by_um = (phases(disc(20), NAMES, pixel_nm=nm)[1] for nm in (None, 20.0))
    assert by_um["boundary_per_um"] == pytest.approx(50 * by_pixel["boundary_per_px"])  # 50 pixels make a micrometre


# particles


@pytest.mark.parametrize("unit", UNITS)
def test_a_disc_has_its_diameters_and_its_perimeter(unit):
    (row,) = grains(disc(50), pixel_nm=UNITS[unit])
    assert row[f"ecd_{unit}"] == pytest.approx(100 * EDGE[unit], rel=0.01)
    assert row[f"extent_{unit}"] == pytest.approx(100 * EDGE[unit], rel=0.01)
    assert row[f"perimeter_{unit}"] == pytest.approx(100 * math.pi * EDGE[unit], rel=0.01)


def test_a_disc_is_not_slender():
    (row,) = grains(disc(50))
    assert math.isnan(row["length_px"])
    assert math.isnan(row["width_px"])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("width", [4, 9])
@pytest.mark.parametrize("angle", [0, 17, 30, 45, 75, 90, 120, 157.5])
def test_a_bar_at_an_angle_has_its_length_and_width(angle, width, unit):
    (row,) = grains(bar(150, width, angle), pixel_nm=UNITS[unit])
    assert row[f"length_{unit}"] == pytest.approx(150 * EDGE[unit], rel=0.03)
    assert row[f"width_{unit}"] == pytest.approx(width * EDGE[unit], abs=0.5 * EDGE[unit])
    assert row[f"extent_{unit}"] == pytest.approx(math.hypot(150, width) * EDGE[unit], rel=0.01)


def test_lengths_and_widths_of_bars_have_no_bias():
    """The mean over all angles, where the doubled distance transform is 0.3 pixels too wide or 0.7 too narrow."""
    rows = [grains(bar(150, 5, angle))[0] for angle in range(0, 180, 5)]
    assert np.mean([row["length_px"] for row in rows]) == pytest.approx(150, rel=0.005)
    assert np.mean([row["width_px"] for row in rows]) == pytest.approx(5, abs=0.05)


def test_a_ring_is_as_long_as_its_middle_circle():
    ring = disc(54) - disc(46)
    (row,) = grains(ring)
    assert row["length_px"] == pytest.approx(100 * math.pi, rel=0.02)
    assert row["width_px"] == pytest.approx(8, abs=0.2)


def test_a_star_is_as_long_as_its_arms_together():
    star = np.maximum(bar(150, 6, 20), bar(150, 6, 110))
    assert grains(star)[0]["length_px"] == pytest.approx(300, rel=0.03)


def test_a_rough_blob_is_not_slender_however_many_branches_its_skeleton_has():
    y, x = grid(256)
    comb = (np.abs(x) < 30) & (np.abs(y) < 80) & ((np.abs(x) < 28) | (np.round(y) % 4 > 1))
    assert math.isnan(grains(comb.astype(np.uint8))[0]["length_px"])


def test_the_longest_extent_is_of_the_hull_whatever_lies_within():
    mask = np.zeros((50, 50), np.uint8)
    mask[5, 5:40] = mask[5:30, 5] = 1  # from (5, 39) to (29, 5), and half a pixel further on either side
    assert grains(mask)[0]["extent_px"] == pytest.approx(math.hypot(24, 34) + 34 / math.hypot(24, 34), abs=0.01)


@pytest.mark.parametrize("place", [(0, 5), (5, 0), (10, 5), (5, 10), (5, 5)])
def test_a_particle_at_the_border_is_cut(place):
    mask = np.zeros((11, 11), np.uint8)
    mask[place] = 1
    assert grains(mask, least=1)[0]["cut"] == (place != (5, 5))


def test_a_particle_beside_what_was_not_looked_at_is_cut():
    mask = np.zeros((11, 11), np.uint8)
    mask[4, 4], mask[5, 5] = 1, 255
    assert grains(mask, least=1)[0]["cut"]


def test_particles_come_largest_first_and_from_a_least_size_on():
    mask = np.zeros((12, 12), np.uint8)
    mask[1, 1:4], mask[4, 1:8], mask[8, 1:3] = 1, 1, 1
    assert [row["area_px2"] for row in grains(mask, least=3)] == [7, 3]


def test_a_particle_is_where_its_centre_is():
    mask = np.zeros((12, 14), np.uint8)
    mask[2:5, 6:11] = 1
    assert (grains(mask)[0]["row"], grains(mask)[0]["column"]) == (3, 8)


def test_what_was_not_looked_at_is_no_particle():
    mask = np.full((8, 8), 255, np.uint8)
    mask[:4] = 1
    assert [(row["class"], row["area_px2"]) for row in particles(mask, NAMES, pixel_nm=None)] == [("grain", 32)]


# contacts


@pytest.mark.parametrize("unit", UNITS)
def test_the_boundary_of_a_disc_is_its_circle(unit):
    (row,) = contacts(disc(50), NAMES, pixel_nm=UNITS[unit])
    assert row[f"length_{unit}"] == pytest.approx(100 * math.pi * EDGE[unit], rel=0.02)


def test_the_boundary_of_squares_of_all_directions_is_their_perimeter():
    lengths = [length_of(bar(100, 100, angle)) for angle in np.arange(0, 90, 3)]
    assert np.mean(lengths) == pytest.approx(400, rel=0.005)


@pytest.mark.parametrize("angle", [0, 22.5, 45, 70])
def test_a_straight_boundary_is_off_by_what_four_directions_miss(angle):
    """Lines at k 45 degrees cross a side of this direction |sin| times per length and width of their set."""
    each = abs(np.sin(np.radians(angle - 45 * np.arange(4)))).sum() * math.pi / 8
    assert length_of(bar(160, 160, angle)) == pytest.approx(640 * each, rel=0.01)


def test_contacts_are_of_two_classes_and_shares_of_the_whole_of_each():
    mask = np.zeros((90, 90), np.uint8)
    mask[:30], mask[30:60, :45] = 1, 2  # grain touches pore and matrix along half its border each
    rows = {(row["class"], row["other"]): row for row in contacts(mask, NAMES, pixel_nm=None)}
    assert set(rows) == {("matrix", "grain"), ("matrix", "pore"), ("grain", "pore")}
    assert rows["grain", "pore"]["share_of_class"] == pytest.approx(0.5, abs=0.01)
    assert rows["matrix", "grain"]["share_of_class"] == pytest.approx(45 / 120, abs=0.01)
    assert rows["matrix", "grain"]["share_of_other"] == pytest.approx(0.5, abs=0.01)


def test_classes_apart_and_the_border_of_what_was_seen_are_no_contact():
    mask = np.zeros((9, 9), np.uint8)
    mask[:4], mask[4] = 1, 255
    assert contacts(mask, NAMES, pixel_nm=None) == []


# how sure a share is


def test_the_share_of_images_goes_by_their_area():
    rows = fraction_interval(np.array([[1.0, 0.0], [0.2, 0.8]]), np.array([1.0, 3.0]), names=("a", "b"))
    assert [row["share"] for row in rows] == pytest.approx([0.4, 0.6])


def test_images_of_one_size_have_the_interval_of_their_mean():
    shares = np.random.default_rng(0).uniform(size=(7, 2))
    rows = fraction_interval(shares, np.full(7, 5.0), names=("a", "b"), seed=3)
    np.testing.assert_allclose([[row["low"], row["high"]] for row in rows], intervals(shares, seed=3).T)


def test_the_interval_is_drawn_with_the_areas():
    """A large one of 1 among five small ones of 0: it is drawn not at all, or says nearly all."""
    (row,) = fraction_interval(np.array([[0.0]] * 5 + [[1.0]]), np.array([1.0] * 5 + [95.0]), names=("a",))
    assert (row["low"], row["share"]) == (0, 0.95)
    assert row["high"] == pytest.approx(285 / 288)  # three draws of the large one; four have a chance of 0.9 %


def test_one_image_has_no_interval():
    (row,) = fraction_interval(np.array([[0.3]]), np.array([2.0]), names=("a",))
    assert row["share"] == pytest.approx(0.3)
    assert math.isnan(row["low"])
    assert math.isnan(row["high"])


@pytest.mark.parametrize(("radius", "share"), [(4, 0.3), (12, 0.5), (3, 0.05)])
def test_intervals_of_pictures_of_random_discs_hold_the_true_share(radius, share):
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        row = interval_within(discs_at_random(rng, edge=96, radius=radius, share=share), NAMES[:2])[1]
        held.append(row["low"] <= share <= row["high"])
    assert 0.88 < np.mean(held) < 0.99


def test_a_picture_is_worth_the_points_that_the_covariance_of_random_discs_says():
    """Of discs that rarely overlap the covariance adds up to share * pi r^2 about: a point for each area of a disc."""
    rng = np.random.default_rng(0)
    found = [interval_within(discs_at_random(rng, edge=128, radius=4, share=0.05), NAMES[:2])[1] for _ in range(30)]
    assert np.median([row["num_points"] for row in found]) == pytest.approx(128**2 / (math.pi * 16), rel=0.15)


@pytest.mark.parametrize("seen", [64, 40])
def test_pixels_at_random_are_worth_a_point_each(seen):
    mask = (np.random.default_rng(0).uniform(size=(64, 64)) < 0.3).astype(np.uint8)
    mask[seen:] = 255
    assert interval_within(mask, NAMES)[1]["num_points"] == pytest.approx(64 * seen, rel=0.15)


def test_intervals_hold_the_true_share_also_where_much_was_not_looked_at():
    rng, held = np.random.default_rng(0), []
    for _ in range(100):
        mask = discs_at_random(rng, edge=96, radius=4, share=0.4)
        mask[:, 30:50] = mask[70:] = 255
        row = interval_within(mask, NAMES[:2])[1]
        held.append(row["low"] <= 0.4 <= row["high"])
    assert 0.88 < np.mean(held) <= 1


def test_a_class_that_is_nowhere_or_everywhere_has_no_interval():
    rows = interval_within(np.zeros((8, 8), np.uint8), NAMES[:2])
    assert [row["share"] for row in rows] == [1, 0]
    assert all(math.isnan(row[end]) for row in rows for end in ("low", "high"))


# what is refused


@pytest.mark.parametrize(
    ("mask", "told", "message"),
    [
        (np.zeros((4, 4), np.int64), {}, "must be uint8"),
        (np.zeros((4, 4, 4), np.uint8), {}, "must be uint8"),
        (np.full((4, 4), 3, np.uint8), {}, "holds the id 3 and there are 3 names"),
        (np.full((4, 4), 255, np.uint8), {}, "no pixel of the mask was looked at"),
        (np.zeros((4, 4), np.uint8), {"pixel_nm": 0.0}, "must be positive"),
        (np.zeros((4, 4), np.uint8), {"least": 0}, "must be 1 or more pixels"),
    ],
)
def test_what_has_no_structure_is_refused(mask, told, message):
    with pytest.raises(MedsegError, match=message):
        particles(mask, NAMES, **{"pixel_nm": None, **told})


@pytest.mark.parametrize("areas", [[1.0], [1.0, 0.0]])
def test_areas_that_do_not_fit_the_shares_are_refused(areas):
    with pytest.raises(MedsegError, match=r"shares \(2, 1\)|an area is 0"):
        fraction_interval(np.array([[0.1], [0.2]]), np.array(areas), names=("a",))
