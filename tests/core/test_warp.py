"""One sampling of image and label, against SciPy's."""

import math

import numpy as np
import pytest
from scipy import ndimage

from medseg_core.warp import warp

ANGLE = math.radians(20)
TURN_2D = np.array([[math.cos(ANGLE), math.sin(ANGLE)], [-math.sin(ANGLE), math.cos(ANGLE)]])
TURN_3D = np.eye(3)
TURN_3D[1:, 1:] = TURN_2D
TURN_3D[0, 1] = 0.2
MATRICES = {(24, 18): TURN_2D * 1.2, (11, 9, 10): TURN_3D * 0.9}
BOTH_SPACES = pytest.mark.parametrize("space", MATRICES, ids=str)


def sample(space):
    rng = np.random.default_rng(0)
    return rng.random((2, *space), dtype=np.float32), rng.integers(0, 6, (2, *space), dtype=np.uint8)


@BOTH_SPACES
def test_an_affine_map_is_scipys(space):
    values, layers = sample(space)
    matrix, offset = MATRICES[space], np.array([1.5, -0.25, 2.0])[: len(space)]
    result, ids = warp(values, layers, matrix=matrix, offset=offset)
    for array, got, order in ((values, result, 1), (layers, ids, 0)):
        for part, got_part in zip(array, got, strict=True):
            expected = ndimage.affine_transform(part, matrix, offset, order=order, mode="grid-constant")
            np.testing.assert_allclose(got_part, expected, atol=1e-6)


@BOTH_SPACES
def test_a_bent_map_is_scipys_at_the_same_places(space):
    values, layers = sample(space)
    num, matrix, offset = len(space), MATRICES[space], np.array([1.5, -0.25, 2.0])[: len(space)]
    bend = np.random.default_rng(1).uniform(-2, 2, (num, *range(5, 5 + num)))
    result, ids = warp(values, layers, matrix=matrix, offset=offset, bend=bend, outside=0.3)
    cells = np.array(bend.shape[1:]) - 3
    centres = [(np.arange(n) + 0.5) * c / n + 1 for n, c in zip(space, cells, strict=True)]  # a point lies outside
    points = np.meshgrid(*centres, indexing="ij")
    moves = [ndimage.map_coordinates(part, points, order=3, prefilter=False, mode="mirror") for part in bend]
    places = np.tensordot(matrix, np.indices(space) + moves, 1) + offset.reshape(-1, *[1] * num)
    for array, got, order, outside in ((values, result, 1, 0.3), (layers, ids, 0, 0)):
        for part, got_part in zip(array, got, strict=True):
            expected = ndimage.map_coordinates(part, places, order=order, mode="grid-constant", cval=outside)
            np.testing.assert_allclose(got_part, expected, atol=1e-5)


def test_halfway_between_two_voxels_the_upper_one_counts():
    values, layers = np.arange(9, dtype=np.float32).reshape(1, 3, 3), np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    result, ids = warp(values, layers, matrix=np.eye(2), offset=np.array([0.0, 0.5]))
    assert ids[0, 0].tolist() == [1, 2, 0]
    assert result[0, 0].tolist() == [0.5, 1.5, 1.0]


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int8, np.uint16, np.int64])
def test_labels_keep_their_type_and_their_ids(kind):
    values, layers = sample((24, 18))
    layers = layers.astype(kind)
    layers[0, 3, 4] = np.iinfo(kind).min if kind is not bool else True
    _, ids = warp(values, layers, matrix=np.eye(2), offset=np.zeros(2))
    assert ids.dtype == kind
    np.testing.assert_array_equal(ids, layers)
