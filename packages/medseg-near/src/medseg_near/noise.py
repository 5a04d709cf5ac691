"""What goes wrong in labels, done on purpose: six kinds of error that annotators and networks make.

Axes: X Y Z voxels in file order and spacing, L label voxels, S voxels of the centre line (`medseg_core.skeleton`).

Sizes are those of the structure, not of the voxel: they are counted in its half thickness, the median distance from the
centre line to the border. So an aorta, an adrenal gland and a coronary are hurt alike.

| kind | what an annotator or a network did | what happens to the label |
|---|---|---|
| holes | left pixels out while painting, or thresholded what was dark | balls are removed, up to 40 % of the voxels |
| shifts | drew slice by slice, or the patient breathed between slabs | blocks of slices move in their plane |
| leaks | let region growing run into a bright neighbour | blobs grow from the surface outwards, up to 60 % more |
| smooth | interpolated, or smoothed until thin parts were gone | Gaussian filter and majority |
| breaks | lost a vessel at a stenosis, at motion, or where it is dark | gaps cut it along its centre line |
| branches | stopped following small vessels | branches are missing from their ends on, up to 80 % of their length |

With one state of the generator a larger amount goes on from where a smaller one stopped: holes, leaks and branches
nest, and shifts grow along the same directions.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from medseg_core.errors import MedsegError, meant
from medseg_core.masks import components
from medseg_core.skeleton import skeleton

# At amount 1: shares of the voxels, of the length, and multiples of the half thickness or of a voxel.
HOLES, LEAKS, BRANCHES, TRUNK = 0.4, 0.6, 0.8, 0.6
HOLE_HALVES, LEAK_HALVES, SHIFT_HALVES, SMOOTH_HALVES = (0.5, 1.0), (0.6, 1.4), 1.0, 0.8
BALL_VOXELS = 1.1  # no ball is smaller
LEAK_BALLS, LEAK_STEP = (3, 6), 0.8
BLOCK_SLICES = (2, 9)
SMOOTH_VOXELS = 1.0  # a line of one voxel is outvoted from 0.5 on: 0.68^2 < 0.5
BREAK_EVERY_HALVES, GAP_VOXELS = 12.0, 4.0  # a shorter gap in a slanted tube may leave corners that touch
MARGIN_HALVES = 6.0
AHEAD = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]  # half of the 26 neighbours


@dataclass(frozen=True, eq=False)
class _Piece:
    """A label with room around it: (X, Y, Z) bool, (3,) mm, distance to the border in mm, (S, 3) centre line."""

    label: np.ndarray
    spacing_mm: np.ndarray
    inside_mm: np.ndarray
    line: np.ndarray

    @cached_property
    def half_mm(self) -> float:
        """Half thickness: a border lies half a voxel before the next centre."""
        voxel_mm = self.voxel_mm
        return float(max(np.median(self.inside_mm[tuple(self.line.T)]) - voxel_mm / 2, voxel_mm / 2))

    @property
    def voxel_mm(self) -> float:
        return float(self.spacing_mm.prod() ** (1 / 3))

    def radius_mm(self, halves: float) -> float:
        """Of a ball, in half thicknesses."""
        return max(halves * self.half_mm, BALL_VOXELS * self.voxel_mm)

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """(L, 3) voxels of the label, and for each the number of the closest voxel of the centre line, (L,)."""
        voxels = np.argwhere(self.label)
        return voxels, cKDTree(self.line * self.spacing_mm).query(voxels * self.spacing_mm)[1]


@dataclass(frozen=True, eq=False)
class Measured:
    """What errors need to know of a label: its centre line and thickness, which take longer than the error itself."""

    box: tuple[slice, ...]
    piece: _Piece


def measure(label: np.ndarray, spacing_mm: Sequence[float]) -> Measured:
    """Of a (X, Y, Z) bool label that is not empty, for `corrupt`."""
    return Measured(*_cut_out(label, np.asarray(spacing_mm, float)))


def corrupt(
    label: np.ndarray,
    kind: str,
    *,
    amount: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    measured: Measured | None = None,
) -> np.ndarray:
    """A copy of a label with one kind of error in it; see the table of this module.

    Args:
        label: (X, Y, Z) bool, one structure, thick or thin, in one part or several.
        kind: one of KINDS.
        amount: 0 changes nothing, 1 is severe; the change grows with it.
        spacing_mm: voxel sizes along X, Y, Z.
        rng: where, and in which direction.
        measured: of this label, where it is corrupted again and again.

    Returns:
        (X, Y, Z) bool. Never empty where the label is not: at least its deepest voxel stays.

    Raises:
        MedsegError: no such kind, an amount outside 0 to 1, spacing that is not three sizes above 0, or no bool volume.
    """
    label, spacing = np.asarray(label), np.asarray(spacing_mm, float)
    if kind not in KINDS:
        raise MedsegError(f"noise {kind!r} does not exist{meant(kind, KINDS)}; take one of {', '.join(KINDS)}")
    if not 0 <= amount <= 1:
        raise MedsegError(f"an amount of {amount} cannot be made; give 0 (no change) to 1 (severe)")
    if label.dtype != bool or label.ndim != 3:
        raise MedsegError(f"noise is for bool (X, Y, Z), got {label.dtype} {label.shape}; give `label == id`")
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise MedsegError(f"spacing {spacing.tolist()} must be three sizes above 0, in mm")
    noisy = label.copy(order="K")
    if amount == 0 or not label.any():
        return noisy
    measured = measured or measure(label, spacing)
    box, piece = measured.box, measured.piece
    hurt = _WORK[kind](piece, float(amount), rng)
    if not hurt.any():
        hurt = np.zeros_like(hurt)
        hurt[np.unravel_index(piece.inside_mm.argmax(), hurt.shape)] = True
    noisy[box] = hurt
    return noisy


def corrupted(
    label: np.ndarray,
    kinds: Sequence[str],
    *,
    amount: float,
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    measured: Measured | None = None,
) -> np.ndarray:
    """Several kinds of error one after the other, each of this amount; arguments and errors as for `corrupt`."""
    for kind in kinds:
        label = corrupt(label, kind, amount=amount, spacing_mm=spacing_mm, rng=rng, measured=measured)
        measured = None  # of the label as it was
    return label


def ball(
    shape: Sequence[int], centre: np.ndarray, radius_mm: float, spacing_mm: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box of an array around a ball, and which of its voxels have their centre in the ball.

    Args:
        centre: (3,) in voxels, not necessarily whole.
        spacing_mm: (3,) voxel sizes.
    """
    first = np.maximum(np.ceil(centre - radius_mm / spacing_mm), 0).astype(int)
    stop = np.clip(np.floor(centre + radius_mm / spacing_mm) + 1, first, shape).astype(int)
    axes = [(np.arange(a, b) - c) * mm for a, b, c, mm in zip(first, stop, centre, spacing_mm, strict=True)]
    away2 = sum(np.square(axis).reshape([-1 if i == n else 1 for i in range(3)]) for n, axis in enumerate(axes))
    return tuple(slice(a, b) for a, b in zip(first, stop, strict=True)), away2 <= radius_mm**2


def _cut_out(label: np.ndarray, spacing_mm: np.ndarray) -> tuple[tuple[slice, ...], _Piece]:
    """The box around a label with the room that errors need, and what lies in it."""
    along = [np.flatnonzero(label.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    first, stop = np.array([[at[0], at[-1] + 1] for at in along]).T
    tight = np.pad(label[tuple(map(slice, first, stop))], 1)
    inside_mm = distance_transform_edt(tight, sampling=spacing_mm)
    line = np.argwhere(skeleton(tight))
    half_mm = _Piece(tight, spacing_mm, inside_mm, line).half_mm
    room = np.ceil(MARGIN_HALVES * half_mm / spacing_mm).astype(int) + 4
    start, end = np.maximum(first - room, 0), np.minimum(stop + room, label.shape)
    box = tuple(map(slice, start, end))
    depth_mm = np.zeros(end - start)
    depth_mm[tuple(map(slice, first - start, stop - start))] = inside_mm[1:-1, 1:-1, 1:-1]
    return box, _Piece(label[box], spacing_mm, depth_mm, line - 1 + first - start)


def _holes(piece: _Piece, amount: float, rng: np.random.Generator) -> np.ndarray:
    left, centres = piece.label.copy(), rng.permutation(np.argwhere(piece.label))
    goal, lost = amount * HOLES * len(centres), 0
    for centre, halves in zip(centres, rng.uniform(*HOLE_HALVES, len(centres)), strict=True):
        if lost >= goal:
            break
        box, inside = ball(left.shape, centre, piece.radius_mm(halves), piece.spacing_mm)
        lost += int((left[box] & inside).sum())
        left[box] &= ~inside
    return left


def _shifts(piece: _Piece, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Along the axis with the thickest slices, which are what people draw on."""
    axis = int(rng.choice(np.flatnonzero(piece.spacing_mm >= 0.99 * piece.spacing_mm.max())))
    label = np.moveaxis(piece.label, axis, 0)
    moved = np.zeros_like(label)
    plane_mm = np.delete(piece.spacing_mm, axis)
    most_mm = SHIFT_HALVES * (piece.half_mm + plane_mm.mean())
    start = 0
    while start < len(label):
        stop = start + int(rng.integers(*BLOCK_SLICES))
        angle, share = rng.uniform((0, 0.3), (2 * np.pi, 1))
        way_mm = amount * share * most_mm * np.array([np.cos(angle), np.sin(angle)])
        y, z = np.rint(way_mm / plane_mm).astype(int)
        (y_from, y_to), (z_from, z_to) = (_overlap(step, n) for step, n in zip((y, z), label.shape[1:], strict=True))
        moved[start:stop, y_to, z_to] = label[start:stop, y_from, z_from]
        start = stop
    return np.moveaxis(moved, 0, axis)


def _overlap(step: int, n: int) -> tuple[slice, slice]:
    """From where to where n voxels move by `step` along an axis, without those that leave it."""
    step = int(np.clip(step, -n, n))
    return slice(max(-step, 0), n - max(step, 0)), slice(max(step, 0), n - max(-step, 0))


def _leaks(piece: _Piece, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Each leak is a row of balls that starts in the rim and goes outwards, with a drift to the side."""
    label = piece.label
    grown, starts = label.copy(), rng.permutation(np.argwhere(label & ~binary_erosion(label)))
    slopes = np.gradient(gaussian_filter(label.astype(np.float32), piece.half_mm / piece.spacing_mm, mode="nearest"))
    goal, gained = amount * LEAKS * int(label.sum()), 0
    for start in starts:
        if gained >= goal:
            break
        out = -np.array([slope[tuple(start)] for slope in slopes]) / piece.spacing_mm
        out /= max(float(np.linalg.norm(out)), np.finfo(np.float32).tiny)
        radius_mm = piece.radius_mm(rng.uniform(*LEAK_HALVES))
        at_mm = start * piece.spacing_mm
        for _ in range(int(rng.integers(*LEAK_BALLS))):
            box, inside = ball(label.shape, at_mm / piece.spacing_mm, radius_mm, piece.spacing_mm)
            gained += int((inside & ~grown[box]).sum())
            grown[box] |= inside
            side = out + rng.normal(0, 0.4, 3)
            at_mm = at_mm + LEAK_STEP * radius_mm * side / np.linalg.norm(side)
    return _holding(grown, np.argwhere(label))


def _smooth(piece: _Piece, amount: float, _: np.random.Generator) -> np.ndarray:
    """Without chance. What a width does to a thickness has a threshold, so the width grows with the root."""
    most_mm = max(SMOOTH_HALVES * piece.half_mm, SMOOTH_VOXELS * piece.voxel_mm)
    std = np.sqrt(amount) * most_mm / piece.spacing_mm
    return gaussian_filter(piece.label.astype(np.float32), std, mode="nearest") > 0.5


def _breaks(piece: _Piece, amount: float, rng: np.random.Generator) -> np.ndarray:
    """A gap takes what is closest to its part of the centre line; an end is shortened only where all is end."""
    line_mm, half_mm = piece.line * piece.spacing_mm, piece.half_mm
    most = max(1, round(len(line_mm) * piece.voxel_mm / (BREAK_EVERY_HALVES * half_mm)))
    voxels, nearest = piece.nearest()
    ends_mm = line_mm[_num_neighbours(piece) <= 1]
    order = rng.permutation(len(line_mm))
    wide = rng.uniform(0, 2, len(order))
    cut = np.zeros(len(line_mm), bool)
    num = int(np.ceil(amount * most))
    for n, halves in zip(order, wide, strict=True):
        reach_mm = max((1 + amount * halves) * half_mm, GAP_VOXELS * piece.spacing_mm.max()) / 2
        from_end_mm = np.linalg.norm(ends_mm - line_mm[n], axis=1).min(initial=np.inf)
        if from_end_mm > 2 * reach_mm + half_mm and num > 0:
            cut |= _run(piece, n, reach_mm)
            num -= 1
    if not cut.any():
        cut = _run(piece, int(order[0]), max(half_mm, GAP_VOXELS * piece.spacing_mm.max()) / 2)
    left = piece.label.copy()
    left[tuple(voxels[cut[nearest]].T)] = False
    return left


def _run(piece: _Piece, n: int, reach_mm: float) -> np.ndarray:
    """(S,) bool: the part of the centre line that leads away from its voxel n, within a ball."""
    near = np.linalg.norm((piece.line - piece.line[n]) * piece.spacing_mm, axis=1) <= reach_mm
    here = piece.line[near]
    held = np.zeros(np.ptp(here, axis=0) + 1, bool)
    at = tuple((here - here.min(0)).T)
    held[at] = True
    parts = components(held)[at]
    near[near] = parts == parts[near[:n].sum()]
    return near


def _num_neighbours(piece: _Piece) -> np.ndarray:
    """(S,) how many voxels of the centre line touch each of them."""
    held, at = np.zeros(np.array(piece.label.shape) + 2, np.uint8), piece.line + 1
    held[tuple(at.T)] = 1
    return sum(held[tuple((at + side * np.array(step)).T)] for step in AHEAD for side in (1, -1))


def _branches(piece: _Piece, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Every part grows from the thickest place of its centre line; its longest way from there is the trunk.

    Short branches go first. The last one to go is shortened to what is asked for. A way no longer than the vessel it
    leaves is wide there is a corner of the surface, no branch. Without branches, a trunk loses its far end, up to 60 %.
    """
    owner, attached, lengths_mm, far_mm = _ways(piece)
    wide_mm = piece.inside_mm[tuple(piece.line.T)]
    is_trunk = attached < 0
    is_branch = ~is_trunk & (lengths_mm > 2 * np.maximum(wide_mm[attached], 1.5 * piece.spacing_mm.max()))
    order = np.argsort(lengths_mm * rng.uniform(0.5, 2, len(lengths_mm)))
    share, ways = (BRANCHES, order[is_branch[order]]) if is_branch.any() else (TRUNK, order[is_trunk[order]])
    rest_mm = amount * share * lengths_mm[ways].sum() * rng.uniform(0.5, 1)
    kept_mm = np.full(len(lengths_mm), np.inf)  # what stays of each way, from the root on
    for n in ways:
        tip_mm = far_mm[owner == n].max()
        kept_mm[n] = tip_mm - min(rest_mm, lengths_mm[n])
        rest_mm -= min(rest_mm, lengths_mm[n])
    for n in np.flatnonzero(~is_trunk):  # a way comes after the one it leaves
        if far_mm[attached[n]] > kept_mm[owner[attached[n]]]:
            kept_mm[n] = -np.inf
    missed = far_mm > kept_mm[owner]
    voxels, nearest = piece.nearest()
    left = piece.label.copy()
    left[tuple(voxels[missed[nearest]].T)] = False
    return _holding(left, piece.line[~missed])


def _ways(piece: _Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The centre line as ways from leaves towards the thickest place, the longest first.

    Returns:
        (S,) number of the way that a voxel belongs to; (W,) the voxel that each way leaves, -1 for a trunk; (W,) length
        of each way in mm; (S,) distance from the root in mm.
    """
    number = np.full(np.array(piece.label.shape) + 2, -1)
    number[tuple(piece.line.T + 1)] = np.arange(len(piece.line))
    pairs = []
    for step in AHEAD:
        other = number[tuple(piece.line.T + 1 + np.array(step)[:, None])]
        here = np.flatnonzero(other >= 0)
        pairs.append((here, other[here], np.full(len(here), np.linalg.norm(step * piece.spacing_mm))))
    one, other, length_mm = (np.concatenate(values) for values in zip(*pairs, strict=True))
    graph = coo_array((length_mm, (one, other)), shape=(len(piece.line),) * 2).tocsr()
    part = connected_components(graph, directed=False)[1]
    thick_first = np.argsort(-piece.inside_mm[tuple(piece.line.T)], kind="stable")
    roots = thick_first[np.unique(part[thick_first], return_index=True)[1]]
    far_mm, before, _ = dijkstra(graph, directed=False, indices=roots, return_predecessors=True, min_only=True)
    owner, attached, lengths_mm = np.full(len(before), -1), [], []
    for leaf in np.argsort(-far_mm, kind="stable"):
        if owner[leaf] < 0:
            at = leaf
            while at >= 0 and owner[at] < 0:
                owner[at] = len(attached)
                at = before[at]
            attached.append(max(at, -1))
            lengths_mm.append(far_mm[leaf] - (far_mm[at] if at >= 0 else 0))
    return owner, np.array(attached), np.array(lengths_mm), far_mm


def _holding(mask: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """The parts of a mask that hold at least one of the voxels, (M, 3)."""
    parts = components(mask)
    kept = np.zeros(int(parts.max(initial=0)) + 1, bool)
    kept[parts[tuple(voxels.T)]] = True
    return kept[parts] & mask


_WORK = {
    "holes": _holes,
    "shifts": _shifts,
    "leaks": _leaks,
    "smooth": _smooth,
    "breaks": _breaks,
    "branches": _branches,
}
KINDS = tuple(_WORK)
"""The kinds of error that `corrupt` makes."""
