"""Nearest points of a lattice: against all pairs written out, against SciPy's tree, and around the columns' end."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from medseg_core import nearest
from medseg_core.nearest import NUM_COLUMNS, distances

EDGES = st.sampled_from([0.1, 0.7, 1.0, 2.5, 13.0])


def places(flat: np.ndarray, grid: tuple[int, ...], edges: np.ndarray) -> np.ndarray:
    return np.stack(np.unravel_index(flat, grid), axis=1) * edges


def some(rng: np.random.Generator, grid: tuple[int, ...], num: int) -> np.ndarray:
    """Ascending indices of so many points of the lattice, or of all of them."""
    size = math.prod(grid)
    return np.sort(rng.choice(size, min(num, size), replace=False))


def at(grid: tuple[int, ...], *points: tuple[int, int, int]) -> np.ndarray:
    return np.sort([np.ravel_multi_index(point, grid) for point in points])


class Tree(cKDTree):
    """SciPy's, which also counts the points that are asked of it."""

    asked = 0

    def query(self, points):
        Tree.asked += len(points)
        return super().query(points)


@pytest.fixture
def tree(monkeypatch):
    monkeypatch.setattr(nearest, "cKDTree", Tree)
    monkeypatch.setattr(Tree, "asked", 0)
    return Tree


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(EDGES, EDGES, EDGES),
    st.integers(0, 40),
    st.integers(1, 40),
)
@example(0, (1, 9, 9), (1.0, 0.1, 13.0), 9, 1)
@example(0, (9, 1, 1), (0.1, 1.0, 13.0), 9, 1)
def test_distances_are_the_least_of_all_pairs(seed, grid, edges, num, num_others):
    rng, edges = np.random.default_rng(seed), np.array(edges)
    points, others = some(rng, grid, num), some(rng, grid, num_others)
    pairs = cdist(places(points, grid, edges), places(others, grid, edges))
    assert_allclose(distances(points, others, grid, edges), pairs.min(axis=1), rtol=1e-12)


@pytest.mark.parametrize("edges", [(1.0, 1.0, 1.0), (0.1, 1.0, 13.0), (13.0, 0.1, 1.0), (1.0, 13.0, 0.1)])
@pytest.mark.parametrize("grid", [(60, 50, 40), (1, 300, 280), (1, 1, 5000), (1, 5000, 1), (5000, 1, 1)])
@pytest.mark.parametrize("num_others", [1, 4, 5000])
def test_distances_are_those_of_scipys_tree_near_and_far(grid, edges, num_others):
    rng, edges = np.random.default_rng(num_others), np.array(edges)
    points, others = some(rng, grid, 3000), some(rng, grid, num_others)
    expected = cKDTree(places(others, grid, edges)).query(places(points, grid, edges))[0]
    assert_allclose(distances(points, others, grid, edges), expected, rtol=1e-12)


@pytest.mark.parametrize("edges", [(1.0, 1.0, 1.0), (0.5, 2.0, 13.0), (3.0, 0.7, 0.1)])
def test_the_tree_is_asked_for_the_points_beyond_the_columns_alone(edges, tree):
    grid, edges = (80, 80, 3), np.array(edges)
    radius = math.sqrt(NUM_COLUMNS * edges[0] * edges[1] / math.pi)
    points, others = np.arange(math.prod(grid)), at(grid, (40, 40, 1))
    expected = cdist(places(points, grid, edges), places(others, grid, edges))[:, 0]
    assert_allclose(distances(points, others, grid, edges), expected, rtol=1e-12)
    assert tree.asked == (expected > radius).sum() > 0


@pytest.mark.parametrize("edge", [0.1, 1.0, 13.0])
def test_in_a_plane_half_of_the_columns_lie_on_each_side(edge, tree):
    grid, edges = (1, 400, 1), np.array([1.0, edge, 1.0])
    expected = edge * np.abs(np.arange(400) - 200)
    assert_allclose(distances(np.arange(400), np.array([200]), grid, edges), expected, rtol=1e-12)
    assert tree.asked == (np.abs(np.arange(400) - 200) > NUM_COLUMNS // 2).sum()


@pytest.mark.parametrize("step", range(1, 20))
def test_a_column_beyond_the_last_is_found_though_one_within_has_a_point_farther_away(step):
    grid, edges = (30, 3, 100), np.ones(3)
    others = at(grid, (0, 1, 99), (step, 1, 0))
    assert distances(at(grid, (0, 1, 0)), others, grid, edges).item() == step


def test_a_point_of_both_sets_is_at_distance_0():
    grid = (4, 5, 6)
    points = some(np.random.default_rng(0), grid, 30)
    assert not distances(points, points, grid, np.array([0.1, 1, 13])).any()


def test_of_no_points_there_are_no_distances():
    assert distances(np.zeros(0, np.int64), np.array([3]), (2, 2, 2), np.ones(3)).shape == (0,)


def test_the_point_above_and_the_point_below_in_a_column_both_count():
    grid = (1, 1, 20)
    points, others = at(grid, (0, 0, 4), (0, 0, 13)), at(grid, (0, 0, 1), (0, 0, 15))
    assert distances(points, others, grid, np.ones(3)).tolist() == [3, 2]
