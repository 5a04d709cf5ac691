"""Pictures that are nearly the same: copies, neighbours, a patient under two names. Axes: A B of a plane, D numbers."""

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree


def shrunk(plane: np.ndarray, edge: int) -> np.ndarray:
    """(edge, edge) means of the blocks of a plane, which differ by a pixel in size; a smaller plane is repeated."""
    starts: Sequence[np.ndarray] = [np.arange(edge) * n // edge for n in plane.shape]
    if min(plane.shape) < edge:
        return plane[np.ix_(*starts)]
    sizes = [np.diff([*at, n]) for at, n in zip(starts, plane.shape, strict=True)]
    total = np.add.reduceat(np.add.reduceat(plane.astype(np.float64), starts[0], 0), starts[1], 1)
    return total / np.outer(*sizes)


def pairs_within(rows: Sequence[np.ndarray], distance: float) -> list[tuple[int, int]]:
    """Which of (D,) descriptions differ by no more than a root mean square of `distance`, in order, each pair once."""
    if len(rows) < 2:
        return []
    return sorted(cKDTree(np.stack(rows)).query_pairs(distance * np.sqrt(len(rows[0]))))
