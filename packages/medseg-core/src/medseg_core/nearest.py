"""Distance from each point of a lattice to the nearest of others: columns close by first, a tree for what lies far."""

import math
from functools import lru_cache

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

NUM_COLUMNS = 256  # looked through around a point before the tree is asked


def distances(points: np.ndarray, others: np.ndarray, grid: tuple[int, int, int], edges: np.ndarray) -> np.ndarray:
    """(P,) float64 Euclidean distances from each point to the nearest other one.

    The surfaces of a fair prediction and of its label lie within a few voxels: there the few columns around a point,
    nearest first, hold the answer, and the search ends with the first column that lies farther than what was found.

    Args:
        points, others: (P,), (Q,) ascending C-order indices of lattice points; at least one other.
        grid: points of the lattice along each axis.
        edges: (3,) distances of neighbours along each axis.
    """
    columns, squares = _columns(tuple(edges.tolist()), grid[0] > 1)
    found = np.empty(len(points))
    far = np.empty(len(points), np.int64)
    num_far = _search(points, others, np.array(grid), edges, columns, squares, found, far)
    if num_far:
        far = far[:num_far]
        there, here = (np.stack(np.unravel_index(flat, grid), axis=1) * edges for flat in (others, points[far]))
        found[far] = cKDTree(there, leafsize=32, compact_nodes=False, balanced_tree=False).query(here)[0]
    return found


@lru_cache(maxsize=8)
def _columns(edges: tuple[float, float, float], planes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (C, 2) along the first two axes within a radius, nearest first; squares (C + 1,), the radius's last.

    Args:
        planes: there are several; else the columns lie side by side in one.
    """
    radius = math.sqrt(edges[0] * edges[1] * NUM_COLUMNS / math.pi) if planes else edges[1] * NUM_COLUMNS / 2
    most = [int(radius / edges[0]) if planes else 0, int(radius / edges[1])]
    columns = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1).reshape(-1, 2)
    squares = ((columns * edges[:2]) ** 2).sum(1)
    order = np.argsort(squares, kind="stable")
    order = order[squares[order] <= radius**2]
    return columns[order], np.append(squares[order], radius**2)


@njit(nogil=True, cache=True)
def _search(points, others, grid, edges, columns, squares, found, far):
    """Fills `found`; lists in `far`, and counts, the points whose nearest may lie beyond all columns."""
    starts, heights, i0, j0, rows, width = _by_column(others, grid)
    num_far = 0
    for p in range(len(points)):
        k = points[p] % grid[2]
        i = points[p] // grid[2] // grid[1] - i0
        j = points[p] // grid[2] % grid[1] - j0
        best = np.inf
        for c in range(len(columns)):
            if squares[c] >= best:
                break
            ii, jj = i + columns[c, 0], j + columns[c, 1]
            if 0 <= ii < rows and 0 <= jj < width:
                start, stop = starts[ii * width + jj], starts[ii * width + jj + 1]
                if start < stop:
                    step = _gap(heights, start, stop, k) * edges[2]
                    best = min(best, squares[c] + step * step)
        found[p] = np.sqrt(best)
        if best > squares[-1]:
            far[num_far] = p
            num_far += 1
    return num_far


@njit(nogil=True, cache=True)
def _gap(heights, start, stop, k):
    """From k to the nearest of the ascending heights[start:stop]."""
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if heights[middle] < k:
            low = middle + 1
        else:
            high = middle
    gap = heights[low] - k if low < stop else k - heights[stop - 1]
    return min(gap, k - heights[low - 1]) if low > start else gap


@njit(nogil=True, cache=True)
def _by_column(others, grid):
    """Where each column (i, j) of the box around the points begins, the points' places in it, and that box."""
    i0, i1 = others[0] // grid[2] // grid[1], others[-1] // grid[2] // grid[1]
    j0, j1 = grid[1], 0
    for q in range(len(others)):
        j = others[q] // grid[2] % grid[1]
        j0, j1 = min(j0, j), max(j1, j)
    rows, width = i1 - i0 + 1, j1 - j0 + 1
    starts = np.zeros(rows * width + 1, np.int64)
    heights = np.empty(len(others), np.int64)
    for q in range(len(others)):
        column = others[q] // grid[2]
        starts[(column // grid[1] - i0) * width + column % grid[1] - j0 + 1] += 1
        heights[q] = others[q] % grid[2]
    for c in range(rows * width):
        starts[c + 1] += starts[c]
    return starts, heights, i0, j0, rows, width
