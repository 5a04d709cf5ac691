"""Where the structures of a case are: some voxels of each, so that a patch is centred without reading the volume."""

from collections.abc import Sequence

import numpy as np

PER_STRUCTURE = 1000  # voxels kept of each: 6 kB a structure and case; a patch's centre need not be finer


def places_of(layers: Sequence[np.ndarray]) -> np.ndarray:
    """Up to `PER_STRUCTURE` voxels of each id, chosen evenly at random and always the same for equal layers.

    Reads plane by plane along the last axis, twice: a memory map in Fortran order is never held whole.

    Args:
        layers: label maps (X, Y, Z) of ids from 0 on, of one shape; a voxel may have an id in each.

    Returns:
        (M, 4) uint16: id, x, y, z; sorted by id.
    """
    found = [_places_of_layer(layer) for layer in layers]
    rows = np.concatenate(found)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    ids, starts = np.unique(rows[:, 0], return_index=True)
    parts = np.split(rows, starts[1:]) if len(ids) else []
    return np.concatenate([_some(part) for part in parts]) if parts else rows


def _places_of_layer(label: np.ndarray) -> np.ndarray:
    """As `places_of`, for one layer."""
    num_ids = 1 + max(int(label[:, :, k].max()) for k in range(label.shape[2]))
    counts = np.stack([np.bincount(label[:, :, k].ravel(order="K"), minlength=num_ids) for k in range(label.shape[2])])
    totals = counts.sum(0)
    before = np.cumsum(counts, 0) - counts  # voxels of an id in earlier planes
    chosen = {i: np.sort(_rng(i).choice(n, min(n, PER_STRUCTURE), replace=False)) for i, n in enumerate(totals) if i}
    rows = [np.zeros((0, 4), np.uint16)]
    for k in range(label.shape[2]):
        wanted = {}
        for i in np.flatnonzero(counts[k][1:]) + 1:
            ranks = chosen[i]
            ranks = ranks[np.searchsorted(ranks, before[k, i]) : np.searchsorted(ranks, before[k, i] + counts[k, i])]
            if len(ranks):
                wanted[i] = ranks - before[k, i]
        if wanted:
            rows.append(_rows_of_plane(label[:, :, k], k, wanted, counts[k]))
    return np.concatenate(rows)


def _rows_of_plane(plane: np.ndarray, k: int, wanted: dict[int, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """The voxels of the wanted ranks of each id, ranks counted in the plane's C order."""
    order = np.argsort(plane.ravel(), kind="stable")
    first = np.cumsum(counts) - counts
    flat = np.concatenate([order[first[i] + ranks] for i, ranks in wanted.items()])
    ids = np.repeat(list(wanted), [len(ranks) for ranks in wanted.values()])
    x, y = np.unravel_index(flat, plane.shape)
    return np.stack([ids, x, y, np.full(len(x), k)], 1).astype(np.uint16)


def _some(rows: np.ndarray) -> np.ndarray:
    """What several layers have of one id, no more than of any other."""
    if len(rows) <= PER_STRUCTURE:
        return rows
    return rows[np.sort(_rng(int(rows[0, 0])).choice(len(rows), PER_STRUCTURE, replace=False))]


def _rng(number: int) -> np.random.Generator:
    return np.random.default_rng([number, 0, 0, 0])
