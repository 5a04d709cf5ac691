"""Distances and volumes of round cones are known by hand, or by putting very many balls in a row."""

import math

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.masks import components
from medseg_near.tree import Tree, smooth_way, stem, taper

TUBE = stem([[0, 0, 0], [20, 0, 0]], [3, 3])
CONE = stem([[0, 0, 0], [10, 0, 0]], [5, 2])
FORK = stem([[0, 0, 0], [10, 0, 0], [20, 0, 0]], [3, 2, 1]).branch(1, [[10, 8, 0], [10, 14, 0]], [2, 1])


def turned_grid(shape, spacing_mm) -> Grid:
    """An oblique grid around the origin."""
    turn, _ = np.linalg.qr(np.random.default_rng([0, 0, 0, 0]).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


def centres_mm(grid: Grid) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def volume_mm3(tree: Tree, grid: Grid) -> float:
    return tree.mask(grid).sum() * abs(np.linalg.det(grid.affine[:3, :3]))


def test_a_single_node_is_a_ball():
    ball = Tree([[1, 2, 3]], [2], [-1])
    assert ball.distance_mm(np.array([[1, 2, 3], [1, 2, 8], [4, 6, 3]])) == pytest.approx([-2, 3, 3])


def test_distance_to_a_tube_is_that_to_its_line_less_the_radius():
    beside, beyond, inside, corner = [7, 5, 0], [24, 0, 0], [7, 0, 1], [23, 4, 0]
    assert TUBE.distance_mm(np.array([beside, beyond, inside, corner])) == pytest.approx([2, 1, -2, 2])


def test_distance_to_a_cone_is_that_to_the_closest_of_ten_thousand_balls():
    points_mm = np.random.default_rng([1, 0, 0, 0]).uniform(-15, 25, (200, 3))
    share = np.linspace(0, 1, 10001)[:, None]
    away_mm = np.linalg.norm(points_mm - share[..., None] * (10, 0, 0), axis=-1) - (5 - 3 * share)
    assert CONE.distance_mm(points_mm) == pytest.approx(away_mm.min(0), abs=1e-5)


def test_a_ball_that_holds_the_next_one_hides_it():
    swallowed = stem([[0, 0, 0], [1, 0, 0]], [5, 2])
    assert swallowed.distance_mm(np.array([[9, 0, 0], [0, -7, 0]])) == pytest.approx([4, 2])


def test_two_nodes_in_one_place_are_a_ball():
    assert stem([[0, 0, 0], [0, 0, 0]], [2, 2]).distance_mm(np.array([0, 0, 5])) == pytest.approx(3)


def test_a_tree_is_as_close_as_its_closest_cone():
    assert FORK.distance_mm(np.array([[10, 17, 0], [23, 0, 0], [-4, 0, 0]])) == pytest.approx([2, 2, 1])


def test_a_tube_has_the_volume_of_a_cylinder_and_a_ball_on_an_oblique_grid():
    tube = stem([[-10, 0, 0], [10, 0, 0]], [5, 5])
    true_mm3 = math.pi * 25 * 20 + 4 / 3 * math.pi * 125
    assert volume_mm3(tube, turned_grid((60, 50, 40), (0.7, 0.8, 0.9))) == pytest.approx(true_mm3, rel=0.01)


def test_a_slim_cone_has_the_volume_of_a_frustum_and_two_caps():
    slim = stem([[-15, 0, 0], [15, 0, 0]], [5, 4])
    true_mm3 = math.pi * 30 / 3 * (25 + 20 + 16) + 2 / 3 * math.pi * (125 + 64)
    assert volume_mm3(slim, turned_grid((90, 80, 80), (0.6, 0.6, 0.6))) == pytest.approx(true_mm3, rel=0.01)


def test_a_vessel_thinner_than_a_voxel_stays_in_one_part():
    rng = np.random.default_rng([2, 0, 0, 0])
    for _ in range(5):
        way = smooth_way(rng.uniform(-20, 20, (5, 3)), step_mm=1.0)
        mask = stem(way, np.full(len(way), 0.2)).mask(turned_grid((50, 50, 25), (1.0, 1.0, 2.0)))
        assert components(mask).max() == 1


def test_a_mask_holds_the_voxels_whose_centre_is_inside():
    grid = turned_grid((40, 40, 40), (1.0, 1.2, 0.8))
    inside = FORK.distance_mm(centres_mm(grid)) <= 0
    mask = FORK.mask(grid)
    assert (mask & inside).sum() == inside.sum()
    added = mask & ~inside  # by the centre line, whose voxels lie within half a diagonal of it
    assert np.all(FORK.distance_mm(centres_mm(grid)[added]) < math.sqrt(1 + 1.44 + 0.64) / 2 - 1)


def test_distance_on_a_grid_is_that_of_its_voxels_up_to_the_reach():
    grid = turned_grid((30, 40, 35), (1.0, 1.2, 0.8))
    there_mm = FORK.distance_mm(centres_mm(grid))
    given_mm = FORK.distance_on(grid, reach_mm=2.5)
    assert given_mm[there_mm < 2.49] == pytest.approx(there_mm[there_mm < 2.49], abs=1e-4)
    assert np.isinf(given_mm[there_mm > 2.51]).all()


def test_a_tree_beside_the_grid_leaves_it_empty():
    assert not TUBE.mask(Grid((5, 5, 5), np.diag([1, 1, 1, 1]) + 100 * np.eye(4, k=3)[[0, 1, 2, 3]])).any()


def test_length_and_ends_of_a_fork_by_hand():
    assert FORK.length_mm == pytest.approx(20 + 14)
    assert FORK.ends.tolist() == [2, 4]


def test_a_moved_tree_is_as_far_from_a_moved_place():
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    places_mm = np.random.default_rng([3, 0, 0, 0]).uniform(-5, 25, (50, 3))
    moved = FORK.moved(turn, np.array([4, -2, 7]))
    assert moved.distance_mm(places_mm @ turn.T + (4, -2, 7)) == pytest.approx(FORK.distance_mm(places_mm))
    assert FORK.moved(turn, np.zeros(3), thicker=2).radii_mm == pytest.approx(2 * FORK.radii_mm)


def test_a_way_runs_through_its_places_in_even_steps():
    angle = np.linspace(0, np.pi / 2, 6)
    way = smooth_way(np.stack([20 * np.cos(angle), 20 * np.sin(angle), 0 * angle], 1), step_mm=0.5)
    steps_mm = np.linalg.norm(np.diff(way, axis=0), axis=1)
    assert steps_mm == pytest.approx(np.full(len(steps_mm), 0.5), rel=0.02)
    assert steps_mm.sum() == pytest.approx(10 * np.pi, rel=0.01)  # a quarter of a circle
    assert np.linalg.norm(way, axis=1) == pytest.approx(np.full(len(way), 20), abs=0.15)


def test_a_taper_is_even_along_the_way_however_its_nodes_lie():
    assert taper(np.array([[0, 0, 0], [1, 0, 0], [4, 0, 0]]), 2.0, 1.0) == pytest.approx([2, 1.75, 1])


@pytest.mark.parametrize(
    ("points_mm", "radii_mm", "parents", "said"),
    [
        (np.zeros((0, 3)), [], [], "at least one point"),
        (np.zeros((2, 2)), [1, 1], [-1, 0], "give one radius and one parent"),
        ([[0, 0, 0]], [0], [-1], "the thinnest radius is 0 mm"),
        ([[0, 0, np.nan]], [1], [-1], "places are finite"),
        ([[0, 0, 0], [1, 0, 0]], [1, 1], [1, 0], "node 0 has the parent 1; give an earlier node"),
    ],
)
def test_what_is_no_tree_is_refused(points_mm, radii_mm, parents, said):
    with pytest.raises(MedsegError, match=said):
        Tree(points_mm, radii_mm, parents)


def test_a_way_of_one_place_or_with_a_place_twice_is_refused():
    for places in ([[0, 0, 0]], [[0, 0, 0], [0, 0, 0], [1, 0, 0]]):
        with pytest.raises(MedsegError, match="no two in a row alike"):
            smooth_way(places, step_mm=1.0)
