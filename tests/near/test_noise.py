"""Each kind of error does what its name says to shapes whose answer is known by hand, and no more."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import convolve
from scipy.ndimage import label as numbered

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import read_volume
from medseg_near.noise import KINDS, _num_neighbours, _Piece, ball, corrupt, corrupted
from medseg_near.tree import Tree, smooth_way, stem, taper

SPACING_MM = (0.8, 1.0, 1.5)
AMOUNTS = (0.1, 0.4, 0.7, 1.0)


def rng(number: int = 0) -> np.random.Generator:
    return np.random.default_rng([7, number, 0, 0])


def tube(radius: int = 4, length: int = 60) -> np.ndarray:
    """Along the last axis, with room around."""
    away = np.hypot(*(np.indices((40, 40)) - 20)) <= radius
    return np.pad(np.repeat(away[..., None], length, axis=2), ((0, 0), (0, 0), (10, 10)))


def thick() -> np.ndarray:
    """Two balls that overlap, 60 voxels an edge."""
    x, y, z = np.indices((60, 60, 60))
    return ((x - 26) ** 2 + (y - 28) ** 2 + (z - 30) ** 2 < 15**2) | (
        (x - 38) ** 2 + (y - 30) ** 2 + (z - 30) ** 2 < 10**2
    )


TREE_GRID = Grid((72, 40, 40), np.diag([*SPACING_MM, 1.0]))


def trunk() -> Tree:
    way = smooth_way([[2, 20, 30], [25, 22, 32], [52, 20, 28]], step_mm=1.0)
    return stem(way, taper(way, 4.0, 2.0))


def tree() -> np.ndarray:
    """A trunk of 4 to 2 mm with three branches of 1.6 mm."""
    whole = trunk()
    for node, end in ((14, (22, 36, 44)), (26, (36, 4, 38)), (36, (42, 30, 22))):
        way = smooth_way([whole.points_mm[node], end], step_mm=1.0)
        whole = whole.branch(node, way[1:], np.full(len(way) - 1, 1.6))
    return whole.mask(TREE_GRID)


def num_parts(mask: np.ndarray) -> int:
    return numbered(mask, np.ones((3, 3, 3)))[1]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


SHAPES = {"tube": (tube(), (1, 1, 1)), "thick": (thick(), (1, 1, 1)), "tree": (tree(), SPACING_MM)}


@pytest.fixture(params=SHAPES)
def shape(request) -> tuple[np.ndarray, tuple[float, float, float]]:
    return SHAPES[request.param]


@pytest.mark.parametrize("kind", KINDS)
def test_no_amount_changes_nothing_and_the_answer_is_a_copy(kind):
    label = thick()
    same = corrupt(label, kind, amount=0, spacing_mm=(1, 1, 1), rng=rng())
    assert np.array_equal(same, label)
    assert not np.shares_memory(same, label)


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_given_is_never_touched(kind, shape):
    label, spacing_mm = shape
    before = label.copy()
    label.flags.writeable = False
    noisy = corrupt(label, kind, amount=1, spacing_mm=spacing_mm, rng=rng())
    assert np.array_equal(label, before)
    assert noisy.dtype == bool
    assert noisy.shape == label.shape


@pytest.mark.parametrize("kind", KINDS)
def test_equal_generators_give_equal_errors_and_others_give_others(kind, shape):
    label, spacing_mm = shape
    one, same, other = (corrupt(label, kind, amount=0.6, spacing_mm=spacing_mm, rng=rng(n)) for n in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.array_equal(one, other) == (kind == "smooth")


@pytest.mark.parametrize("kind", KINDS)
def test_dice_falls_on_average_as_the_amount_grows(kind, shape):
    label, spacing_mm = shape
    means = [
        np.mean([dice(label, corrupt(label, kind, amount=a, spacing_mm=spacing_mm, rng=rng(n))) for n in range(4)])
        for a in AMOUNTS
    ]
    assert all(one >= other for one, other in pairwise([1, *means])), means
    assert 0.2 < means[-1] < 0.97, means


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [np.s_[5, 5, 5], np.s_[0, 0, 0], np.s_[5, 5, 2:9], np.s_[:, 5, 5], np.s_[:, :, :]])
def test_something_always_stays_of_the_smallest_and_the_largest_label(kind, where):
    label = np.zeros((11, 12, 13), bool)
    label[where] = True
    for number in range(3):
        assert corrupt(label, kind, amount=1, spacing_mm=SPACING_MM, rng=rng(number)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_label_stays_empty(kind):
    assert not corrupt(np.zeros((4, 5, 6), bool), kind, amount=1, spacing_mm=(1, 1, 1), rng=rng()).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_does_not_depend_on_memory_order_or_on_empty_room(kind):
    label = tree()
    wide = np.pad(label, 40)
    plain, turned, roomy = (
        corrupt(array, kind, amount=0.7, spacing_mm=SPACING_MM, rng=rng())
        for array in (np.pad(label, 30), np.asfortranarray(np.pad(label, 30)), wide)
    )
    assert np.array_equal(plain, turned)
    assert np.array_equal(np.pad(plain, 10), roomy)


@pytest.mark.parametrize("kind", ["holes", "breaks", "branches"])
def test_what_removes_adds_nothing(kind, shape):
    label, spacing_mm = shape
    for amount in AMOUNTS:
        noisy = corrupt(label, kind, amount=amount, spacing_mm=spacing_mm, rng=rng())
        assert not (noisy & ~label).any()
        assert noisy.sum() < label.sum()


@pytest.mark.parametrize("amount", [0.25, 0.5, 1.0])
def test_holes_take_the_asked_share_of_forty_percent(amount):
    label = tube(radius=6)
    lost = 1 - corrupt(label, "holes", amount=amount, spacing_mm=(1, 1, 1), rng=rng()).sum() / label.sum()
    assert 0.4 * amount <= lost < 0.4 * amount + 0.1  # one ball too many


@pytest.mark.parametrize("kind", ["holes", "leaks", "branches"])
def test_a_larger_amount_goes_on_from_a_smaller_one(kind, shape):
    label, spacing_mm = shape
    noisy = [corrupt(label, kind, amount=a, spacing_mm=spacing_mm, rng=rng()) != label for a in AMOUNTS]
    assert all(not (less & ~more).any() for less, more in pairwise(noisy))


def test_shifts_keep_every_slice_as_it_is_but_for_its_place():
    label = tube()
    noisy = corrupt(label, "shifts", amount=1, spacing_mm=(1, 1, 2), rng=rng())
    assert noisy.sum() == label.sum()  # there is room
    assert np.array_equal(noisy.sum((0, 1)), label.sum((0, 1)))  # along the axis of the thick slices
    for before, after in zip(np.moveaxis(label, 2, 0), np.moveaxis(noisy, 2, 0), strict=True):
        tight = [plane[np.ix_(plane.any(1), plane.any(0))] for plane in (before, after)]
        assert np.array_equal(*tight)
    centres = [np.argwhere(plane).mean(0) for plane in np.moveaxis(noisy, 2, 0) if plane.any()]
    moved = np.abs(np.diff(centres, axis=0)).sum(1) > 0
    assert 60 / 9 - 2 < moved.sum() < 60 / 2  # in blocks of 2 to 8 slices


def test_shifts_cut_off_what_leaves_the_array():
    label = np.zeros((12, 12, 30), bool)
    label[:3, :3] = True
    noisy = corrupt(label, "shifts", amount=1, spacing_mm=(1, 1, 2), rng=rng())
    assert 0 < noisy.sum() < label.sum()
    assert not noisy[8:].any()  # nothing comes in again on the other side


def test_leaks_only_add_and_what_they_add_hangs_on_the_label(shape):
    label, spacing_mm = shape
    for amount in AMOUNTS:
        noisy = corrupt(label, "leaks", amount=amount, spacing_mm=spacing_mm, rng=rng())
        assert not (label & ~noisy).any()
        assert num_parts(noisy) == num_parts(label) == 1
        assert noisy.sum() >= label.sum() * (1 + 0.5 * amount)


def test_smoothing_removes_a_line_of_one_voxel_and_keeps_the_ball_it_comes_from():
    label = np.zeros((60, 31, 31), bool)
    x, y, z = np.indices(label.shape)
    body = (x - 15) ** 2 + (y - 15) ** 2 + (z - 15) ** 2 <= 10**2
    label[body] = label[15:55, 15, 15] = True
    noisy = corrupt(label, "smooth", amount=1, spacing_mm=(1, 1, 1), rng=rng())
    assert not noisy[30:].any()
    assert dice(noisy, body) > 0.9


def test_smoothing_leaves_a_plane_border_where_it_is():
    label = np.zeros((40, 40, 40), bool)
    label[:20] = True
    assert np.array_equal(corrupt(label, "smooth", amount=1, spacing_mm=(1, 1, 1), rng=rng()), label)


@pytest.mark.parametrize("amount", [0.01, 0.3, 1.0])
def test_breaks_cut_a_straight_tube_into_more_parts(amount):
    for number in range(5):
        noisy = corrupt(tube(), "breaks", amount=amount, spacing_mm=(1, 1, 1), rng=rng(number))
        assert num_parts(noisy) > 1
        assert noisy[:, :, :12].any()
        assert noisy[:, :, -12:].any()  # it is cut, not shortened


def test_a_break_goes_straight_through_and_is_as_long_as_asked_for():
    """Half thickness 4: at a small amount one gap of about that length."""
    noisy = corrupt(tube(), "breaks", amount=0.01, spacing_mm=(1, 1, 1), rng=rng())
    kept = noisy.sum((0, 1))[10:70]
    assert set(kept.tolist()) == {0, int(tube()[:, :, 30].sum())}
    assert 3 <= (kept == 0).sum() <= 5


def test_missing_branches_leave_the_trunk_whole():
    label = tree()
    in_trunk = trunk().mask(TREE_GRID)
    for number in range(5):
        noisy = corrupt(label, "branches", amount=1, spacing_mm=SPACING_MM, rng=rng(number))
        assert num_parts(noisy) == 1
        assert (noisy & in_trunk).sum() > 0.95 * in_trunk.sum()
        lost = 1 - (noisy & ~in_trunk).sum() / (label & ~in_trunk).sum()
        assert 0.3 < lost < 0.9  # 40 to 80 % of the branches' length


def test_small_branches_are_missed_before_large_ones():
    """On a trunk, one branch of 30 mm and one of 15: at an amount that 15 mm use up, the long one stays."""
    whole = stem(smooth_way([[5, 30, 10], [60, 30, 10]], step_mm=1.0), np.full(56, 4.0))
    whole = whole.branch(20, [[25, 30, 40]], [2]).branch(35, [[40, 10, 10]], [2])
    label = whole.mask(Grid((66, 60, 50), np.eye(4)))
    shorter = [corrupt(label, "branches", amount=0.3, spacing_mm=(1, 1, 1), rng=rng(n)) for n in range(20)]
    long_kept, short_kept = (np.mean([noisy[at] for noisy in shorter]) for at in ((25, 30, 38), (40, 13, 10)))
    assert long_kept > short_kept


def test_a_branch_goes_with_all_that_hangs_on_it():
    """A trunk, a branch of 36 mm, and one of 26 mm that leaves it after 10 mm: whatever goes, all hangs together."""
    whole = stem(smooth_way([[5, 40, 10], [75, 40, 10]], step_mm=1.0), np.linspace(5, 3.5, 71))
    whole = whole.branch(30, [[35, 40, 20], [35, 40, 46]], [2, 2])
    whole = whole.branch(71, [[35, 14, 24]], [2])
    label = whole.mask(Grid((80, 50, 52), np.eye(4)))
    sizes = set()
    for number in range(20):
        noisy = corrupt(label, "branches", amount=1, spacing_mm=(1, 1, 1), rng=rng(number))
        assert num_parts(noisy) == 1
        sizes.add(int(noisy.sum()))
    assert len(sizes) > 5


def test_breaks_cut_a_slanted_tube_that_is_hardly_wider_than_a_voxel():
    way = smooth_way([[5, 5, 5], [45, 30, 22]], step_mm=1.0)
    label = stem(way, np.full(len(way), 1.4)).mask(Grid((52, 36, 30), np.eye(4)))
    for number in range(10):
        assert num_parts(corrupt(label, "breaks", amount=0.01, spacing_mm=(1, 1, 1), rng=rng(number))) == 2


def test_a_tube_without_branches_loses_its_end():
    noisy = corrupt(tube(), "branches", amount=1, spacing_mm=(1, 1, 1), rng=rng())
    assert num_parts(noisy) == 1
    assert 0.35 < noisy.sum() / tube().sum() < 0.75  # 30 to 60 % are gone


def test_several_kinds_are_one_after_the_other():
    one = rng()
    label = thick()
    by_hand = corrupt(label, "holes", amount=0.5, spacing_mm=(1, 1, 1), rng=one)
    by_hand = corrupt(by_hand, "leaks", amount=0.5, spacing_mm=(1, 1, 1), rng=one)
    assert np.array_equal(corrupted(label, ("holes", "leaks"), amount=0.5, spacing_mm=(1, 1, 1), rng=rng()), by_hand)


def test_a_ball_has_the_voxels_within_its_radius_and_ends_at_the_array():
    box, inside = ball((10, 10, 10), np.array([0.0, 5, 5]), 2.0, np.array([1.0, 2, 1]))
    held = np.zeros((10, 10, 10), bool)
    held[box] = inside
    x, y, z = np.indices(held.shape)
    assert np.array_equal(held, x**2 + (2 * (y - 5)) ** 2 + (z - 5) ** 2 <= 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "hole"}, "noise 'hole' does not exist; did you mean 'holes'"),
        ({"amount": 1.5}, "an amount of 1.5 cannot be made; give 0"),
        ({"amount": float("nan")}, "an amount of nan"),
        ({"spacing_mm": (1, 1)}, "three sizes above 0"),
        ({"spacing_mm": (1, 0, 1)}, "three sizes above 0"),
        ({"label": np.zeros((3, 3, 3), np.uint8)}, "got uint8 .3, 3, 3.; give `label == id`"),
        ({"label": np.zeros((3, 3), bool)}, "got bool .3, 3."),
    ],
)
def test_what_cannot_be_made_noisy_is_refused_in_one_line(change, said):
    given = {"label": thick(), "kind": "holes", "amount": 0.5, "spacing_mm": (1, 1, 1)} | change
    with pytest.raises(MedsegError, match=said) as error:
        corrupt(given.pop("label"), given.pop("kind"), rng=rng(), **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["aorta", "iliac_artery_left", "portal_vein_and_splenic_vein", "adrenal_gland_right"])
def test_real_vessels_and_glands_are_hurt_by_every_kind_and_survive(data, name):
    volume = read_volume(data / f"ct_multiorgan/ts_s0001/segmentations/{name}.nii.gz")
    label = np.asarray(volume.voxels) > 0
    for kind in KINDS:
        noisy = corrupt(label, kind, amount=1, spacing_mm=volume.spacing_mm, rng=rng())
        assert 0.2 < dice(noisy, label) < 0.99, kind


def test_real_adrenal_glands_are_hurt_by_every_kind_and_survive(data):
    with np.load(data / "shapes3d/adrenalmnist3d_64_trainval.npz") as stored:
        labels = stored["train_images"][:4] > 0
    for label in labels:
        for kind in KINDS:
            assert 0.2 < dice(corrupt(label, kind, amount=1, spacing_mm=(1, 1, 1), rng=rng()), label) < 0.99, kind


def test_voxels_of_a_line_are_touched_by_as_many_as_a_convolution_counts():
    """A fork in space, whose arms go along all kinds of steps; `scipy.ndimage.convolve` counts all but the middle."""
    label = np.zeros((9, 9, 9), bool)
    for step in ((1, 0, 0), (-1, 1, 0), (0, -1, 1), (-1, -1, -1)):
        for n in range(4):
            label[tuple(4 + n * np.array(step))] = True
    piece = _Piece(label, np.ones(3), np.ones(label.shape), np.argwhere(label))
    counted = convolve(label.astype(np.uint8), np.ones((3, 3, 3), np.uint8), mode="constant")[label] - 1
    np.testing.assert_array_equal(_num_neighbours(piece), counted)
