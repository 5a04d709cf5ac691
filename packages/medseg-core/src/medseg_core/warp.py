"""Image and label on a grid that is moved and bent, in one pass: linear between voxels, and the nearest id."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import njit


def warp(
    values: np.ndarray,
    layers: np.ndarray,
    *,
    matrix: np.ndarray,
    offset: np.ndarray,
    bend: np.ndarray | None = None,
    outside: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """What stands at index i of the result stood at matrix @ (i + bend(i)) + offset.

    The conventions are SciPy's mode "grid-constant" at order 1 and 0: beyond the outermost voxel centres values fade to
    `outside` within one voxel; ids are 0 from half a voxel on, and halfway between two voxels the upper one counts.

    Args:
        values: (C, *space) float32, C-contiguous; space has 2 or 3 axes.
        layers: (L, *space) integers or bool, C-contiguous.
        matrix, offset: (d, d) and (d,), in voxels.
        bend: (d, *points) moves of control points, see `bend_everywhere`; None bends nothing.
    """
    space = values.shape[1:]
    num = len(space)
    whole = (1,) * (3 - num) + space  # a plane is a volume of one slice
    matrix_3d, offset_3d = np.eye(3), np.zeros(3)
    matrix_3d[3 - num :, 3 - num :], offset_3d[3 - num :] = matrix, offset
    moves = np.zeros((3, 0, 0, 0), np.float32)
    if bend is not None:
        moves = np.zeros((3, *whole), np.float32)
        moves[3 - num :] = bend_everywhere(bend, space).reshape(num, *whole)
    source = values.reshape(-1, *whole)
    ids = layers.view(f"u{layers.itemsize}").reshape(-1, *whole)  # signed, unsigned and bool share a compiled kernel
    result, result_ids = np.empty_like(source), np.zeros_like(ids)
    _fill(source, ids, matrix_3d, offset_3d, moves, float(outside), result, result_ids)
    return result.reshape(values.shape), result_ids.view(layers.dtype).reshape(layers.shape)


def bend_everywhere(bend: np.ndarray, space: Sequence[int]) -> np.ndarray:
    """The cubic B-spline of control points (d, *points) at every voxel: (d, *space), in voxels (Rueckert et al., 1999).

    An axis of c + 3 points has c cells that span it from end to end, half a voxel beyond the outermost centres.
    """
    dense = bend
    for axis in reversed(range(len(space))):
        weights = _spline(space[axis], bend.shape[axis + 1] - 3)
        before, after = dense.shape[: axis + 2], dense.shape[axis + 2 :]
        dense = (weights @ dense.reshape(*before, -1)).reshape(*before[:-1], len(weights), *after)
    return dense


@lru_cache(maxsize=16)
def _spline(num: int, cells: int) -> np.ndarray:
    """(num, cells + 3): the weight of each control point at the centres of `num` voxels that span `cells` cells."""
    at = (np.arange(num) + 0.5) * cells / num
    cell = at.astype(int)
    part = at - cell
    rest = 1 - part
    taps = (rest**3, 4 - 6 * part**2 + 3 * part**3, 4 - 6 * rest**2 + 3 * rest**3, part**3)
    weights = np.zeros((num, cells + 3))
    for k, tap in enumerate(taps):
        weights[np.arange(num), cell + k] = tap / 6
    return weights


@njit(nogil=True, cache=True)
def _fill(values, ids, matrix, offset, moves, outside, result, result_ids):
    """Fills the results; an id that would come from outside keeps what it came with."""
    bent = moves.shape[1] > 0
    x_size, y_size, z_size = values.shape[1:]
    for x in range(x_size):
        for y in range(y_size):
            for z in range(z_size):
                i, j, k = float(x), float(y), float(z)
                if bent:
                    i, j, k = i + moves[0, x, y, z], j + moves[1, x, y, z], k + moves[2, x, y, z]
                at_x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 2] * k + offset[0]
                at_y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 2] * k + offset[1]
                at_z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + offset[2]
                near_x, near_y, near_z = int(np.floor(at_x + 0.5)), int(np.floor(at_y + 0.5)), int(np.floor(at_z + 0.5))
                if 0 <= near_x < x_size and 0 <= near_y < y_size and 0 <= near_z < z_size:
                    for layer in range(ids.shape[0]):
                        result_ids[layer, x, y, z] = ids[layer, near_x, near_y, near_z]
                for channel in range(values.shape[0]):
                    result[channel, x, y, z] = _blend(values[channel], at_x, at_y, at_z, outside)


@njit(nogil=True, cache=True)
def _blend(values, at_x, at_y, at_z, outside):
    """The linear blend of the 8 voxels around a place; those of weight 0 are not read, those beyond are `outside`."""
    x, y, z = int(np.floor(at_x)), int(np.floor(at_y)), int(np.floor(at_z))
    total = 0.0
    for i in range(2):
        weight_x = at_x - x if i else 1.0 - (at_x - x)
        for j in range(2):
            weight_xy = weight_x * (at_y - y if j else 1.0 - (at_y - y))
            if weight_xy == 0.0:
                continue
            for k in range(2):
                weight = weight_xy * (at_z - z if k else 1.0 - (at_z - z))
                if weight == 0.0:
                    continue
                if 0 <= x + i < values.shape[0] and 0 <= y + j < values.shape[1] and 0 <= z + k < values.shape[2]:
                    total += weight * values[x + i, y + j, z + k]
                else:
                    total += weight * outside
    return total
