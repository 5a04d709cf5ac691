"""Label maps put in order: their connected parts, the largest of each label, holes filled.

A label map is a (X, Y, Z) or (H, W) array of whole numbers from 0 (background) to 65535, in any integer type or bool.
What comes back has the type of what went in, and lies in Fortran order where that did.
"""

from collections.abc import Collection

import cc3d
import numpy as np
from numba import njit
from scipy.ndimage import find_objects

from medseg_core.errors import MedsegError

LARGEST_ID = 2**16 - 1
CONNECTIVITIES = {2: (4, 8), 3: (6, 18, 26)}


def components(mask: np.ndarray, *, connectivity: int | None = None) -> np.ndarray:
    """Numbers the connected parts of all labels from 1 on; a part has one label, however its neighbours touch it.

    Args:
        connectivity: 6 (through faces), 18 (and edges) or 26 (and corners) in 3D, 4 or 8 in 2D; None is 26 or 8.

    Returns:
        Unsigned integers as wide as needed, 0 where the mask is 0.

    Raises:
        MedsegError: not a label map, or another connectivity.
    """
    ids = whole_ids(mask, "mask")
    allowed = CONNECTIVITIES[ids.ndim]
    connectivity = allowed[-1] if connectivity is None else connectivity
    if connectivity not in allowed:
        raise MedsegError(f"connectivity {connectivity} does not exist in {ids.ndim}D; take one of {allowed}")
    if not ids.size:
        return np.zeros(ids.shape, np.uint16)
    writable = ids if ids.flags.writeable else ids.copy(order="K")  # cc3d 4.1 takes no read-only array
    return cc3d.connected_components(writable, connectivity=connectivity)


def keep_largest(
    mask: np.ndarray, *, n: int = 1, ids: Collection[int] | None = None, connectivity: int | None = None
) -> np.ndarray:
    """Removes all but the n largest connected parts of each label, by voxels.

    Of parts of equal size the one whose first voxel has the smallest index stays: the first axis decides, then the
    second, then the third, whatever the memory order.

    Args:
        n: how many parts of each label stay, 1 or more.
        ids: labels to clean, the others stay as they are; None is all.
        connectivity: as in `components`.

    Raises:
        MedsegError: not a label map, n below 1, or another connectivity.
    """
    if n < 1:
        raise MedsegError(f"n={n} would keep no part of any label; take n=1 for the largest")
    stored = whole_ids(mask, "mask")
    parts = components(mask, connectivity=connectivity)
    label, size, first = np.zeros((3, int(parts.max(initial=0)) + 1), np.int64)
    first += stored.size
    _measure(*along_memory(stored, parts), in_fortran_order(stored), label, size, first)
    order = np.lexsort((first, -size, label))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(label[order], label[order])
    cleaned = np.isin(label, list(ids)) if ids is not None else True
    return _as(mask, np.where((rank >= n) & cleaned, 0, label).astype(stored.dtype)[parts])


def fill_holes(mask: np.ndarray, *, ids: Collection[int] | None = None) -> np.ndarray:
    """Gives the holes of each label that label: background from which no path through faces leads out of the array.

    Paths may cross other labels, so what two labels enclose together is no hole. Other labels are never overwritten;
    where labels lie within each other, a hole goes to the innermost around it.

    Args:
        ids: labels whose holes are filled; None is all.

    Raises:
        MedsegError: not a label map.
    """
    stored = whole_ids(mask, "mask")
    filled = np.array(stored, order="K")
    smallest = np.full_like(stored, np.iinfo(np.uint32).max, dtype=np.uint32)
    boxes = find_objects(stored) if stored.size else []
    for i, box in enumerate(boxes, 1):
        if box is None or (ids is not None and i not in ids):
            continue
        around = np.pad(stored[box] != i, 1, constant_values=True)
        regions, num_regions = cc3d.connected_components(around, connectivity=2 * stored.ndim, return_N=True)
        if num_regions == 1:
            continue
        size = np.bincount(regions.ravel(order="K"))
        size[[0, regions.flat[0]]] = np.iinfo(np.uint32).max
        size_here = size[regions[(slice(1, -1),) * stored.ndim]]
        hole = (size_here < smallest[box]) & (stored[box] == 0)
        filled[box][hole] = i
        smallest[box][hole] = size_here[hole]
    return _as(mask, filled)


def whole_ids(array: np.ndarray, name: str) -> np.ndarray:
    """The same voxels as unsigned integers of native byte order: a view, unless the bytes have to be swapped.

    Args:
        array: (X, Y, Z) or (H, W).
        name: what to call it in an error.

    Raises:
        MedsegError: another number of axes, not whole numbers, or ids outside 0 to 65535.
    """
    array = np.asarray(array)
    if array.ndim not in CONNECTIVITIES:
        raise MedsegError(
            f"{name} has shape {array.shape}; a label map is (X, Y, Z) or (H, W): take one case at a time"
        )
    if array.dtype.kind not in "bui":
        raise MedsegError(
            f"{name} holds {array.dtype}, but a label map holds whole numbers; cast it: {name}.astype(np.uint16)"
        )
    if array.size and (array.dtype.kind == "i" or array.itemsize > 2):
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > LARGEST_ID:
            raise MedsegError(
                f"{name} holds the id {low if low < 0 else high}; ids run from 0 to {LARGEST_ID}: renumber the others, "
                "and set what is to be ignored to 0 in mask and label"
            )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.view(f"u{array.itemsize}")


def along_memory(array: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Views with three axes, all transposed where the first array lies in Fortran order: its last axis is fastest."""
    views = (each.T if in_fortran_order(array) else each for each in (array, *others))
    return tuple(each[None] if each.ndim == 2 else each for each in views)


def in_fortran_order(array: np.ndarray) -> bool:
    """The first axis is contiguous, as in a NIfTI file, and not the last."""
    return array.flags.f_contiguous and not array.flags.c_contiguous


@njit(nogil=True, cache=True)
def _measure(ids, parts, turned, label, size, first):
    """Adds up the label, the voxels and the smallest index of every part; `turned`: the axes come last to first."""
    n0, n1, n2 = ids.shape
    for i in range(n0):
        for j in range(n1):
            for k in range(n2):
                part = parts[i, j, k]
                if part:
                    index = (k * n1 + j) * n0 + i if turned else (i * n1 + j) * n2 + k
                    label[part] = ids[i, j, k]
                    size[part] += 1
                    first[part] = min(first[part], index)


def _as(mask: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The ids in the type of the mask; a view, unless bytes have to be swapped."""
    dtype = np.asarray(mask).dtype
    return ids.view(dtype.newbyteorder("=")).astype(dtype, copy=False)
