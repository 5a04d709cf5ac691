"""Descriptions of pictures, and which of them are close."""

import numpy as np
import pytest

from medseg_core.alike import pairs_within, shrunk


def test_means_of_blocks_are_those_of_the_pixels():
    plane = np.arange(18.0).reshape(3, 6)
    np.testing.assert_allclose(shrunk(plane, 3), [[0.5, 2.5, 4.5], [6.5, 8.5, 10.5], [12.5, 14.5, 16.5]])


def test_blocks_that_do_not_divide_a_plane_still_cover_it():
    plane = np.random.default_rng(0).random((7, 5))
    sizes = np.outer([2, 2, 3], [1, 2, 2])  # rows from 0, 2, 4 and columns from 0, 1, 3
    assert (shrunk(plane, 3) * sizes).sum() == pytest.approx(plane.sum())


def test_a_plane_smaller_than_its_description_is_repeated():
    np.testing.assert_array_equal(shrunk(np.array([[1.0, 2.0]]), 4), np.repeat([[1.0, 1.0, 2.0, 2.0]], 4, 0))


def test_pairs_are_those_whose_root_mean_square_is_within():
    rows = [np.zeros(4), np.full(4, 0.5), np.array([3.0, 0, 0, 0])]  # 0.5, 1.5 and sqrt(7 / 4) = 1.32 apart
    assert pairs_within(rows, 0.51) == [(0, 1)]
    assert pairs_within(rows, 1.4) == [(0, 1), (1, 2)]


def test_nothing_is_like_nothing():
    assert pairs_within([], 1) == pairs_within([np.zeros(4)], 1) == []
