"""Blocks of slices that moved in their plane, found by their neighbours and put back.

Labels are drawn slice by slice, and patients breathe between slabs; so a block may lie beside its neighbours, all of it
by the same step. The steps of all slices that fit best are found together by dynamic programming (Viterbi, 1967), as in
the alignment of heart slices before a surface is drawn through them (Villard et al., STACOM 2016, and others): slices
beside each other should overlap, a step between them costs, and so does being far from where the file has them.

Axes: K slices, Y Z voxels in their plane, O the steps that a slice may make.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import shift

from medseg_near.shapes import box_of

REACH = 4  # voxels along each axis that a slice may move from where most are, and from where the file has it
JUMP = 1.0  # voxels of mismatch for each voxel of a slice's edge that a jump between neighbours costs
PULL = 0.05  # the same for a slice that lies a voxel away from where the file has it; it grows with the square
SURE = 0.07  # mismatch that must vanish before anything is moved
SHARED = 0.85  # of the smaller of two neighbours, that must overlap as they stand: a slant looks like a step below
MOST = 0.6  # share of the voxels; one block of many must not push the others
STEPS = np.stack(np.meshgrid(*[np.arange(-REACH, REACH + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)  # (O, 2)
STAYS = len(STEPS) // 2


@dataclass(frozen=True, eq=False)
class Aligned:
    """A label with its slices put back.

    Args:
        label: (X, Y, Z) bool; the very input where nothing is sure to have moved.
        num_moved: slices of the structure that were moved.
        farthest_mm: the longest way.
    """

    label: np.ndarray
    num_moved: int = 0
    farthest_mm: float = 0.0


def put_back(label: np.ndarray, spacing_mm: Sequence[float]) -> Aligned:
    """Slices along the axis where they are thickest, or along that of three alike where most is mended.

    Where neighbours hardly overlap, as in a thin rib that runs across the slices, none is moved: there a slant looks
    like a step. Nor is anything moved out of the array.

    Args:
        label: (X, Y, Z) bool.
        spacing_mm: along X, Y, Z.
    """
    spacing = np.asarray(spacing_mm, float)
    tight = box_of(label)
    if tight is None:
        return Aligned(label)
    box = tuple(slice(max(s.start - 2 * REACH, 0), s.stop + 2 * REACH) for s in tight)
    best, best_axis, best_steps = SURE, -1, STEPS
    for axis in np.flatnonzero(spacing >= 0.99 * spacing.max()):
        mended, steps = _best_steps(np.moveaxis(label[box], axis, 0))
        if mended > best:
            best, best_axis, best_steps = mended, int(axis), steps
    if best_axis < 0:
        return Aligned(label)
    moved = label.copy(order="K")
    slices_KYZ = np.moveaxis(moved[box], best_axis, 0)
    for plane, step in zip(slices_KYZ, best_steps, strict=True):
        plane[:] = shift(plane.view(np.uint8), step, order=0)
    if np.count_nonzero(moved) != np.count_nonzero(label):
        return Aligned(label)
    ways_mm = np.linalg.norm(best_steps * np.delete(spacing, best_axis), axis=1)
    return Aligned(moved, int(np.count_nonzero(ways_mm)), float(ways_mm.max()))


def _best_steps(slices_KYZ: np.ndarray) -> tuple[float, np.ndarray]:
    """Mismatch that vanishes, in voxels for each voxel of edge, and the steps (K, 2) by which it does."""
    areas = np.count_nonzero(slices_KYZ, axis=(1, 2))
    steps = np.zeros((len(areas), 2), int)
    held = np.flatnonzero(areas)
    first, stop = held[0], held[-1] + 1
    slices_KYZ, areas = slices_KYZ[first:stop], areas[first:stop]
    smaller = np.minimum(areas[:-1], areas[1:])
    shared = np.count_nonzero(slices_KYZ[:-1] & slices_KYZ[1:])
    if not len(smaller) or not smaller.all() or shared < SHARED * smaller.sum():
        return 0.0, steps  # without a neighbour nothing tells where a slice belongs
    edges, pulled = np.sqrt(areas), PULL * (STEPS**2).sum(1)
    stands, score, came = 0.0, -edges[0] * pulled, []
    for number, fit_OO in enumerate(_fits(slices_KYZ)):
        stands += fit_OO[STAYS, STAYS]
        costs = JUMP * min(edges[number : number + 2]) * (1 - np.eye(len(STEPS)))
        total_OO = score[:, None] + fit_OO - costs
        came.append(total_OO.argmax(0))
        score = total_OO.max(0) - edges[number + 1] * pulled
    way = [int(score.argmax())]
    for before in reversed(came):
        way.append(int(before[way[-1]]))
    steps[first:stop] = STEPS[way[::-1]]
    ways, which = np.unique(steps[first:stop], axis=0, return_inverse=True)
    shares = np.bincount(which.ravel(), areas)
    if shares.max() > MOST * shares.sum():  # what most agree on did not move
        steps[first:stop] -= ways[shares.argmax()]
    return float((score.max() - stands) / edges.sum()), steps


def _fits(slices_KYZ: np.ndarray) -> Iterator[np.ndarray]:
    """Of each two neighbours, (O, O): minus half the voxels that differ when they make these steps."""
    far = 2 * REACH
    size = [next_fast_len(n + far, real=True) for n in slices_KYZ.shape[1:]]
    there = np.arange(-far, far + 1)
    apart = (STEPS[None] - STEPS[:, None]) + far  # of the later slice from the earlier one
    spectra = ((rfft2(plane.astype(np.float32), size), np.count_nonzero(plane)) for plane in slices_KYZ)
    for (one, area), (other, next_area) in pairwise(spectra):
        shared = irfft2(one * other.conj(), size)[there][:, there]
        yield shared[apart[..., 0], apart[..., 1]] - (area + next_area) / 2
