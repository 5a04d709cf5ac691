"""What surface distances must be whatever the masks: properties, and shapes whose distances are known by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.spatial.distance import cdist

from medseg_core import surface
from medseg_core.errors import MedsegError
from medseg_core.surface import MEASURES, surface_metrics

CONVENTIONS = ["voxel", "surface"]
DISTANCES = ("hd", "hd95", "assd")
IDS = [1, 2]
EDGES = st.sampled_from([0.1, 0.7, 1.0, 2.5, 13.0])
NOISE, BOX, SHEET, LINE, EVERYWHERE = range(5)

both_conventions = pytest.mark.parametrize("convention", CONVENTIONS)


def one_side(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ids 0, 1 and 2: noise, or a box, sheet or line of 1 with some 2 over it, or 1 everywhere."""
    kind, side = rng.integers(5), np.zeros(shape, np.uint8)
    corners = [sorted(rng.integers(0, n + 1, 2)) for n in shape]
    inside, axis = [slice(*ends) for ends in corners], rng.integers(len(shape))
    if kind == NOISE:
        return np.where(rng.random(shape) < rng.choice([0.05, 0.5, 0.9]), rng.integers(1, 3, shape), 0).astype(np.uint8)
    if kind == SHEET:
        inside = [slice(None)] * len(shape)
        inside[axis] = rng.integers(shape[axis])
    if kind == LINE:
        inside = [rng.integers(n) for n in shape]
        inside[axis] = slice(None)
    side[... if kind == EVERYWHERE else tuple(inside)] = 1
    side[tuple(rng.integers(0, n) for n in shape)] = rng.integers(3)
    return side


@st.composite
def cases(draw):
    """A mask and a label, of 2 or 3 axes of 1 to 7, the length of their edges, and a tolerance."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=3)))
    spacing = tuple(draw(st.tuples(*[EDGES] * len(shape))))
    return one_side(rng, shape), one_side(rng, shape), spacing, draw(st.sampled_from([0.0, 0.5, 1.2, 2.5, 14.0]))


def measured(mask, label, spacing, tolerance=1.0, *, convention, ids=IDS, **how) -> np.ndarray:
    """(4, L) of MEASURES."""
    found = surface_metrics(mask, label, ids=ids, spacing=spacing, tolerance_mm=tolerance, convention=convention, **how)
    return np.array([found[name] for name in MEASURES])


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def by_all_pairs(mask: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], *, convention: str) -> list:
    """d(a, B) and d(b, A) of the points where one convention puts the surface; None where a side has none."""
    points = []
    for side in (np.pad(mask, 1), np.pad(label, 1)):
        if convention == "voxel":
            at = side ^ ndimage.binary_erosion(side)
        else:
            around = sliding_window_view(side, (2,) * side.ndim).reshape(*(n - 1 for n in side.shape), -1)
            at = around.any(-1) & ~around.all(-1)
        points.append(np.argwhere(at) * spacing)
    if not all(map(len, points)):
        return None
    pairs = cdist(*points)
    return [pairs.min(axis=1), pairs.min(axis=0)]


@both_conventions
@settings(max_examples=50)
@given(cases())
def test_exchanging_the_sides_changes_nothing(convention, case):
    mask, label, *how = case
    assert_same(measured(label, mask, *how, convention=convention), measured(mask, label, *how, convention=convention))


@both_conventions
@settings(max_examples=50)
@given(cases(), st.sampled_from([1e-3, 0.3, 7.0, 1e6]))
def test_another_unit_scales_the_distances_and_leaves_nsd(convention, case, scale):
    mask, label, spacing, tolerance = case
    expected = measured(mask, label, spacing, tolerance, convention=convention)
    expected[:3] *= scale
    scaled = [scale * edge for edge in spacing]
    assert_same(measured(mask, label, scaled, scale * tolerance, convention=convention), expected)


@both_conventions
@settings(max_examples=50)
@given(cases(), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_where_the_sides_lie_in_a_wider_array_changes_nothing(convention, case, widths):
    mask, label, *how = case
    wide = [np.pad(side, np.reshape(widths, (3, 2))[: mask.ndim]) for side in (mask, label)]
    assert_same(measured(*wide, *how, convention=convention), measured(mask, label, *how, convention=convention))


@both_conventions
@settings(max_examples=50)
@given(cases(), st.permutations(range(3)), st.booleans(), st.booleans())
def test_axes_permuted_and_mirrored_with_the_spacing_change_nothing(convention, case, order, is_mirrored, is_copied):
    mask, label, spacing, tolerance = case
    order = [axis for axis in order if axis < mask.ndim]
    turned = [side.transpose(order)[:: -1 if is_mirrored else 1] for side in (mask, label)]
    turned = [np.ascontiguousarray(side) if is_copied else side for side in turned]
    found = measured(*turned, [spacing[axis] for axis in order], tolerance, convention=convention)
    assert_same(found, measured(mask, label, spacing, tolerance, convention=convention))


@both_conventions
@settings(max_examples=50)
@given(cases(), *[st.sampled_from(["u1", "u2", ">i2", "i4", "i8", "u8"])] * 2, st.sampled_from("CF"))
def test_types_and_memory_orders_change_nothing(convention, case, mask_type, label_type, order):
    mask, label, *how = case
    found = measured(mask.astype(mask_type, order=order), label.astype(label_type), *how, convention=convention)
    assert_same(found, measured(mask, label, *how, convention=convention))


@both_conventions
@settings(max_examples=50)
@given(cases(), st.sampled_from([(2, 1), (254, 255), (255, 256), (65535, 1)]))
def test_the_number_of_an_id_and_what_else_is_there_change_nothing(convention, case, ids):
    mask, label, *how = case
    table = np.array([0, *ids], np.uint16)
    found = measured(table[mask], table[label], *how, ids=ids, convention=convention)
    alone = [measured(mask == i, label == i, *how, ids=[1], convention=convention) for i in IDS]
    assert_same(found, np.concatenate(alone, axis=1))


@both_conventions
@settings(max_examples=50)
@given(cases(), st.floats(0, 100), st.floats(0, 100))
def test_measures_are_in_order(convention, case, percentile, tolerance):
    mask, label, spacing, _ = case
    how = {"percentile": percentile, "convention": convention}
    hd, of_percentile, assd, nsd = measured(mask, label, spacing, tolerance, **how)
    how["percentile"] = (percentile + 100) / 2
    wider = measured(mask, label, spacing, 2 * tolerance, **how)
    is_there = ~np.isnan(hd)
    assert (of_percentile <= wider[1])[is_there].all()
    assert (wider[1] <= hd)[is_there].all()
    assert (assd <= hd * (1 + 1e-12))[is_there].all()
    assert (nsd <= wider[3] + 1e-12)[is_there].all()
    assert ((nsd >= 0) & (wider[3] <= 1 + 1e-12))[is_there].all()
    assert_array_equal(measured(mask, label, spacing, percentile=100, convention=convention)[1], hd)


@both_conventions
@settings(max_examples=50)
@given(cases(), st.integers(0, 2**32 - 1))
def test_no_way_over_a_third_mask_is_shorter(convention, case, seed):
    mask, label, spacing, _ = case
    third = one_side(np.random.default_rng(seed), mask.shape)
    direct, *ways = (
        measured(*sides, spacing, convention=convention)[0] for sides in ((mask, label), (mask, third), (third, label))
    )
    is_there = ~np.isnan(direct + sum(ways))
    assert (direct <= sum(ways) * (1 + 1e-12))[is_there].all()


@both_conventions
@settings(max_examples=50)
@given(cases())
def test_the_farthest_is_that_of_all_pairs(convention, case):
    mask, label, spacing, _ = case
    for i, hd in zip(IDS, measured(mask, label, spacing, convention=convention)[0], strict=True):
        gaps = by_all_pairs(mask == i, label == i, spacing, convention=convention)
        assert hd == pytest.approx(max(gap.max() for gap in gaps) if gaps else math.nan, rel=1e-12, nan_ok=True)


@given(cases())
def test_voxel_measures_are_those_of_all_pairs(case):
    mask, label, spacing, tolerance = case
    for i, found in zip(IDS, measured(mask, label, spacing, tolerance, convention="voxel").T, strict=True):
        gaps = by_all_pairs(mask == i, label == i, spacing, convention="voxel")
        if gaps:
            both = np.concatenate(gaps)
            hd95 = max(np.percentile(gap, 95) for gap in gaps)
            assert_same(found, [both.max(), hd95, both.mean(), (both <= tolerance * (1 + 1e-6)).mean()])


@both_conventions
@pytest.mark.parametrize(
    ("shape", "ways"),
    [
        ((300, 8), [(n, 0) for n in (100, 123, 124, 125, 126, 127, 128, 129, 130, 290)]),
        ((8, 300), [(0, n) for n in (120, 290)]),
        ((30, 30, 8), [(n, m, 0) for n in (0, 4, 5, 6, 7, 8, 20) for m in (0, 5, 6, 20)]),
        ((8, 4, 300), [(0, 0, 290)]),
    ],
)
def test_blobs_near_and_far_are_at_the_distance_of_all_pairs(shape, ways, convention):
    rng = np.random.default_rng(0)
    spacing = (1.0, 0.9, 0.8)[: len(shape)]
    for way in ways:
        mask, label = np.zeros((2, *shape), bool)
        mask[tuple(slice(4) for _ in shape)] = rng.random((4,) * len(shape)) < 0.5
        label[tuple(slice(n, n + 4) for n in way)] = rng.random(label[tuple(slice(n, n + 4) for n in way)].shape) < 0.5
        gaps = by_all_pairs(mask, label, spacing, convention=convention)
        (hd,) = measured(mask, label, spacing, ids=[1], convention=convention)[0]
        assert hd == pytest.approx(max(gap.max() for gap in gaps), rel=1e-12)


@both_conventions
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("way", [(3, 4), (0, 200), (200, 0), (290, 280), (0, 0, 250), (0, 250, 0), (250, 0, 0)])
def test_single_voxels_are_as_far_apart_as_they_lie(way, order, convention):
    spacing = (0.1, 1.0, 13.0)[: len(way)]
    mask, label = (np.zeros([n + 3 for n in way], np.uint8, order=order) for _ in range(2))
    mask[(1,) * len(way)] = 1
    label[tuple(n + 1 for n in way)] = 1
    hd = math.hypot(*np.multiply(way, spacing))
    found = measured(mask, label, spacing, hd, ids=[1], convention=convention)
    if convention == "voxel":
        assert_allclose(found[:, 0], [hd, hd, hd, 1], rtol=1e-12)
    else:  # corners on the far side have the whole way, as have all if the voxels lie one behind the other
        assert found[0] == pytest.approx(hd, rel=1e-12)
        assert found[3] == 1


@both_conventions
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_slab_at_each_border_of_the_array_is_measured_like_any_other(axis, is_last, convention):
    spacing, shape = (0.5, 2.0, 3.0), (9, 8, 7)
    mask, label = np.zeros((2, *shape), np.uint8)
    at = [slice(None)] * 3
    at[axis] = slice(-2, None) if is_last else slice(2)
    label[tuple(at)] = 1
    at[axis] = slice(-5, None) if is_last else slice(5)
    mask[tuple(at)] = 1
    assert measured(mask, label, spacing, ids=[1], convention=convention)[0] == 3 * spacing[axis]


@both_conventions
def test_a_mask_of_the_whole_array_ends_where_the_array_does(convention):
    label, spacing = np.zeros((5, 7, 9), np.uint8), (0.1, 1.0, 13.0)
    label[2, 3, 4] = 1
    expected = math.hypot(2 * 0.1, 3 * 1.0, 4 * 13.0)
    assert measured(np.ones_like(label), label, spacing, ids=[1], convention=convention)[0] == pytest.approx(expected)


@both_conventions
@pytest.mark.parametrize("shape", [(11, 12), (11, 12, 13)])
def test_a_box_grown_by_a_voxel_is_a_diagonal_away_at_its_corners(shape, convention):
    spacing = (0.1, 1.0, 13.0)[: len(shape)]
    label = np.pad(np.ones([n - 6 for n in shape], np.uint8), 3)
    mask = np.pad(np.ones([n - 4 for n in shape], np.uint8), 2)
    hd, _, _, nsd = measured(mask, label, spacing, math.hypot(*spacing), ids=[1], convention=convention)
    assert (hd, nsd) == (pytest.approx(math.hypot(*spacing)), 1)


def test_sheets_of_a_voxel_are_as_far_apart_as_they_lie_by_voxels():
    mask, label = np.zeros((2, 9, 6, 5), np.uint8)
    mask[1], label[6] = 1, 1
    found = measured(mask, label, (0.7, 1, 13), [3.5], ids=[1], convention="voxel")
    assert_allclose(found[:, 0], [3.5, 3.5, 3.5, 1], rtol=1e-12)
    assert measured(mask, label, (0.7, 1, 13), 3.49, ids=[1], convention="voxel")[3] == 0


def test_sheets_of_a_voxel_have_a_near_and_a_far_face_by_surface():
    mask, label = np.zeros((2, 9, 6, 5), np.uint8)
    mask[1], label[6] = 1, 1
    found = measured(mask, label, (0.7, 1, 13), 3.0, ids=[1], convention="surface")
    assert_allclose(found[:, 0], [5 * 0.7, 5 * 0.7, 4.5 * 0.7, 0.5], rtol=1e-12)


@both_conventions
@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1, 30), (1, 30, 1), (30, 1, 1)])
def test_segments_of_a_line_are_apart_by_their_ends(shape, convention):
    mask, label = np.zeros((2, *shape), np.uint8)
    mask.flat[2:9], label.flat[4:25] = 1, 1
    found = measured(mask, label, [0.1 if n == 30 else 13 for n in shape], ids=[1], convention=convention)
    assert found[0] == pytest.approx(1.6)


@both_conventions
def test_each_of_hundreds_of_labels_has_its_own_distance(convention):
    ids = np.arange(1, 501)
    mask, label = np.zeros((2, 100, 31, 6), np.int32)
    row, column = np.divmod(ids - 1, 10)
    label[2 * row, 3 * column, 0] = ids
    mask[2 * row, 3 * column, ids % 6] = ids
    found = measured(mask, label, (1.0, 1.0, 0.5), ids=ids, convention=convention)
    assert_allclose(found[0], 0.5 * (ids % 6), rtol=1e-12)


@both_conventions
def test_shells_within_each_other_are_each_at_their_own_distance(convention):
    radius = np.linalg.norm(np.indices((21, 21, 21)) - 10, axis=0)
    label = np.where(radius < 10, 1 + (radius / 2).astype(np.uint8), 0)
    mask = np.roll(label, 1, axis=2)
    expected = [by_all_pairs(mask == i, label == i, (1, 1, 2), convention=convention) for i in range(1, 6)]
    found = measured(mask, label, (1, 1, 2), ids=range(1, 6), convention=convention)
    assert_allclose(found[0], [max(gap.max() for gap in gaps) for gaps in expected], rtol=1e-12)


@both_conventions
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 5, 5), (5, 0, 5), (5, 5, 0)])
def test_in_an_empty_array_every_structure_is_absent(shape, convention):
    nothing = np.zeros(shape, np.uint8)
    assert np.isnan(measured(nothing, nothing, (1,) * len(shape), convention=convention, empty="worst")).all()


@both_conventions
def test_no_ids_give_no_numbers(convention):
    found = measured(np.ones((3, 3), bool), np.ones((3, 3), bool), (1, 1), [], ids=[], convention=convention)
    assert found.shape == (4, 0)


@both_conventions
def test_an_id_asked_for_twice_is_answered_twice(convention):
    label = np.eye(5, dtype=np.uint8)
    found = measured(np.roll(label, 1, 0), label, (1, 1), [0.0, 9.0, 0.0], ids=[1, 1, 1], convention=convention)
    assert_array_equal(found[:3], found[:3, :1] * np.ones(3))
    assert found[3, 0] == found[3, 2] < found[3, 1] == 1


@pytest.mark.parametrize("seed", range(40))
def test_a_share_that_the_weights_reach_exactly_is_reached_in_spite_of_rounding(seed):
    spacing = np.random.default_rng(seed).uniform(0.2, 4, 2)
    mask, label = np.zeros((2, 1 + seed, 12), np.uint8)
    mask[::2, 0], label[::2, 7] = 1, 1
    found = measured(mask, label, spacing, percentile=50, ids=[1], convention="surface")
    assert found[1] == pytest.approx(6 * spacing[1])  # half of the corners lie on the near side, of equal weights


@both_conventions
@settings(max_examples=50)
@given(cases(), st.sampled_from([0, 1, 8]))
def test_structures_measured_a_few_at_a_time_have_the_same_numbers(convention, case, most):
    mask, label, *how = case
    expected = measured(mask, label, *how, ids=[2, 1, 3], convention=convention)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surface, "MOST_POINTS", most)
        assert_array_equal(measured(mask, label, *how, ids=[2, 1, 3], convention=convention), expected)


@pytest.mark.parametrize("tolerances", [[1, 2], [1, 2, 3, 4], [[1, 2, 3]], [3]])
def test_a_number_of_tolerances_that_fits_no_structures_is_refused(tolerances):
    label = np.ones((3, 3), np.uint8)
    with pytest.raises(MedsegError, match=rf"{np.size(tolerances)} tolerances for 3 structures; give one for all"):
        surface_metrics(label, label, ids=[1, 2, 3], spacing=(1, 1), tolerance_mm=tolerances)


MEASURE_MEMORY = """
import sys
import numpy as np
from medseg_core.surface import surface_metrics

how = {"spacing": (1.5, 1.5, 1.5), "convention": sys.argv[1]}
far = np.zeros((2, 90, 40, 40), np.uint8)
far[0, 1, 1, 1] = far[1, -2, -2, -2] = 1
surface_metrics(*far.transpose(0, 3, 2, 1), ids=[1], **how)
bricks = np.random.default_rng(0).permuted(np.resize(np.arange(118, dtype=np.uint8), (10, 8, 8)))
label = np.kron(bricks, np.ones((30, 32, 32), np.uint8)).T
mask = np.asfortranarray(np.roll(label, (2, 1, 1), (0, 1, 2)))
status = dict(line.split(":") for line in open("/proc/self/status"))
open("/proc/self/clear_refs", "w").write("5")
surface_metrics(mask, label, ids=range(1, 118), **how)
peak = dict(line.split(":") for line in open("/proc/self/status"))["VmHWM"]
print((int(peak.split()[0]) - int(status["VmRSS"].split()[0])) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@both_conventions
def test_117_structures_of_a_large_volume_take_less_than_300_megabytes_beside_it(convention):
    run = [sys.executable, "-c", MEASURE_MEMORY, convention]
    peak = float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert 37 < peak < 300
