"""Values of an array at the voxels of another grid: copied where they coincide, else linear, cubic or voted.

Separable maps (scaling, flips, axis order, shifts) go axis by axis; any other affine voxel by voxel.
"""

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation
from numba import njit
from scipy.ndimage import spline_filter, spline_filter1d

HOW = ("linear", "cubic", "label")
SAME = 1e-3  # voxels: positions this close are one place; affines kept in float32 are off by less
SNAP = 1e-6  # voxels, and shares of a vote: rounding errors of float64 geometry are smaller


def sample(
    voxels: np.ndarray, matrix: np.ndarray, *, shape: tuple[int, int, int], how: str, outside: float | None = None
) -> np.ndarray:
    """An array of `shape` whose voxel at index i has the value of `voxels` at index matrix @ i.

    Args:
        voxels: (X, Y, Z) numbers of any dtype and memory order.
        matrix: (4, 4) output index -> input index.
        how: one of `HOW`; see `medseg_core.volume.resample` for what they mean and for `outside`.
    """
    if voxels.flags.f_contiguous and not voxels.flags.c_contiguous:
        turned = matrix[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
        return sample(voxels.T, turned, shape=shape[::-1], how=how, outside=outside).T
    kept = voxels.dtype.newbyteorder("=") if how == "label" or voxels.dtype.kind == "f" else np.dtype(np.float32)
    nearest = io_orientation(matrix)[:, 0].astype(int)
    source, matrix = voxels.transpose(nearest), matrix[[*nearest, 3]]
    lines = _lines(matrix, source.shape, shape)
    if lines is None:
        return _affine(source, matrix, shape, how, outside).astype(kept, copy=False)
    inside = tuple(slice(line.start, line.stop) for line in lines)
    whole = all(line.stop - line.start == n for line, n in zip(lines, shape, strict=True))
    if how == "label" and not all(line.cut for line in lines):
        return _affine(source, matrix, shape, how, outside)
    if any(line.start == line.stop for line in lines):
        return np.full(shape, _outside(voxels, how, outside), dtype=kept)
    block = _separable(source, lines, cubic=how == "cubic").astype(kept, order="C", copy=False)
    if whole:
        return block.copy() if np.shares_memory(block, voxels) else block
    result = np.full(shape, _outside(voxels, how, outside), dtype=kept)
    result[inside] = block
    return result


@dataclass(frozen=True)
class _Line:
    """One output axis of a separable map: which outputs lie inside the input, and where they read."""

    start: int
    stop: int
    cut: slice | None  # the inputs themselves, where outputs coincide with them
    at: np.ndarray  # (stop - start,) input coordinates, clamped to the outermost centres


def _lines(matrix: np.ndarray, source: tuple[int, ...], shape: tuple[int, ...]) -> tuple[_Line, ...] | None:
    """The map axis by axis, or None where it is not separable."""
    scales = np.diag(matrix)[:3]
    if (np.abs(matrix[:3, :3] - np.diag(scales)) @ (np.array(shape) - 1) > SAME).any():
        return None
    return tuple(_line(*parts) for parts in zip(scales, matrix[:3, 3], source, shape, strict=True))


def _line(scale: float, offset: float, source: int, num: int) -> _Line:
    at = scale * np.arange(num) + offset
    (inside,) = np.nonzero((at >= -0.5 - SNAP) & (at <= source - 0.5 + SNAP))
    if not inside.size:
        return _Line(0, 0, slice(0), at[:0])
    start, stop = int(inside[0]), int(inside[-1]) + 1
    at = at[start:stop]
    place = np.rint(at).astype(int)
    step = int(place[1] - place[0]) if len(place) > 1 else 1
    cut = None
    if step and np.abs(at - place).max() <= SAME and (np.diff(place) == step).all():
        end = int(place[-1]) + step
        cut = slice(int(place[0]), end if end >= 0 else None, step)
    return _Line(start, stop, cut, np.clip(at, 0, source - 1))


def _outside(voxels: np.ndarray, how: str, outside: float | None) -> float:
    if outside is not None:
        return outside
    return 0 if how == "label" else np.fmin.reduce(voxels, axis=None)


def _separable(source: np.ndarray, lines: tuple[_Line, ...], *, cubic: bool) -> np.ndarray:
    """Copies first, then the axes that shrink most."""
    real = np.float64 if source.dtype == np.float64 else np.float32
    source = source[tuple(line.cut or slice(None) for line in lines)]
    open_axes = [axis for axis, line in enumerate(lines) if not line.cut]
    for axis in sorted(open_axes, key=lambda axis: len(lines[axis].at) / source.shape[axis]):
        if cubic:
            source = spline_filter1d(source, 3, axis=axis, output=real, mode="mirror")
        index, weight = _table(lines[axis].at, source.shape[axis], cubic)
        before, size, after = source.shape[:axis], source.shape[axis], source.shape[axis + 1 :]
        out = np.empty((*before, len(index), *after), dtype=real)
        num_before, num_after = int(np.prod(before)), int(np.prod(after))
        _along(
            _plain(source).reshape(num_before, size, num_after),
            index,
            weight,
            out.reshape(num_before, len(index), num_after),
        )
        source = out
    return source


def _affine(
    source: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], how: str, outside: float | None
) -> np.ndarray:
    filler = _outside(source, how, outside)
    if how == "label":
        out = np.full(shape, filler, dtype=source.dtype.newbyteorder("="))
        if out.dtype == np.float16:
            return _affine(source.astype(np.float32), matrix, shape, how, filler).astype(np.float16)
        plain = _plain(source)
        _vote(plain, matrix, out.view(plain.dtype))
        return out
    real = np.float64 if source.dtype == np.float64 else np.float32
    if how == "cubic":
        source = spline_filter(source, 3, output=real, mode="mirror")
    out = np.full(shape, filler, dtype=real)
    _blend(_plain(source), matrix, how == "cubic", out)
    return out


def _plain(source: np.ndarray) -> np.ndarray:
    """Contiguous, native, and of a type that compiled code knows."""
    if source.dtype == np.bool_:
        return np.ascontiguousarray(source).view(np.uint8)
    known = np.dtype(np.float32) if source.dtype == np.float16 else source.dtype.newbyteorder("=")
    return np.ascontiguousarray(source, dtype=known)


@njit(nogil=True, cache=True)
def _taps(at, size, cubic, index, weight):
    """Fills the inputs and weights of one coordinate in [0, size - 1]: two for linear, four for the cubic B-spline."""
    low = min(int(at), max(size - 2, 0))
    part = at - low
    if not cubic:
        index[0], index[1] = low, min(low + 1, size - 1)
        weight[0], weight[1] = 1.0 - part, part
        return
    for k in range(4):
        i = abs(low - 1 + k)
        i = 2 * (size - 1) - i if i >= size else i
        index[k] = max(i, 0)
    rest = 1.0 - part
    weight[0] = rest * rest * rest / 6.0
    weight[1] = 2.0 / 3.0 - part * part * (2.0 - part) / 2.0
    weight[2] = 2.0 / 3.0 - rest * rest * (2.0 - rest) / 2.0
    weight[3] = part * part * part / 6.0


@njit(nogil=True, cache=True)
def _table(at, size, cubic):
    taps = 4 if cubic else 2
    index, weight = np.empty((len(at), taps), np.int64), np.empty((len(at), taps))
    for i in range(len(at)):
        _taps(at[i], size, cubic, index[i], weight[i])
    return index, weight


@njit(nogil=True, cache=True)
def _along(source, index, weight, out):
    """Weighted sums along the middle axis: (A, N, B) -> (A, M, B)."""
    for a in range(out.shape[0]):
        for m in range(out.shape[1]):
            i, j, v, w = index[m, 0], index[m, 1], weight[m, 0], weight[m, 1]
            if index.shape[1] == 2:
                for b in range(out.shape[2]):
                    out[a, m, b] = v * source[a, i, b] + w * source[a, j, b]
            else:
                k, n, x, y = index[m, 2], index[m, 3], weight[m, 2], weight[m, 3]
                for b in range(out.shape[2]):
                    out[a, m, b] = v * source[a, i, b] + w * source[a, j, b] + x * source[a, k, b] + y * source[a, n, b]


@njit(nogil=True, cache=True)
def _place(matrix, x, y, z, shape, at):
    """Fills the input coordinates of an output voxel, clamped to the outermost centres; False outside the input."""
    for axis in range(3):
        value = matrix[axis, 0] * x + matrix[axis, 1] * y + matrix[axis, 2] * z + matrix[axis, 3]
        if value < -0.5 - SNAP or value > shape[axis] - 0.5 + SNAP:
            return False
        value = min(max(value, 0.0), shape[axis] - 1.0)
        whole = np.rint(value)
        at[axis] = whole if abs(value - whole) < SNAP else value
    return True


@njit(nogil=True, cache=True)
def _blend(source, matrix, cubic, out):
    """Weighted sums of 8 or 64 neighbours; what lies outside keeps the value `out` came with."""
    taps = 4 if cubic else 2
    at, index, weight = np.empty(3), np.empty((3, taps), np.int64), np.empty((3, taps))
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            for z in range(out.shape[2]):
                if not _place(matrix, x, y, z, source.shape, at):
                    continue
                for axis in range(3):
                    _taps(at[axis], source.shape[axis], cubic, index[axis], weight[axis])
                total = 0.0
                for i in range(taps):
                    for j in range(taps):
                        row = 0.0
                        for k in range(taps):
                            row += weight[2, k] * source[index[0, i], index[1, j], index[2, k]]
                        total += weight[0, i] * weight[1, j] * row
                out[x, y, z] = total


@njit(nogil=True, cache=True)
def _vote(source, matrix, out):
    """The id with the largest linear weight among 8 neighbours; most cells hold one id and need no vote."""
    at = np.empty(3)
    ids, shares = np.empty(8, source.dtype), np.empty(8)
    last_x, last_y, last_z = source.shape[0] - 1, source.shape[1] - 1, source.shape[2] - 1
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            i = j = k = -1
            same = False
            for z in range(out.shape[2]):
                if not _place(matrix, x, y, z, source.shape, at):
                    continue
                if int(at[0]) != i or int(at[1]) != j or int(at[2]) != k:
                    i, j, k = int(at[0]), int(at[1]), int(at[2])
                    cell = source[i : min(i, last_x - 1) + 2, j : min(j, last_y - 1) + 2, k : min(k, last_z - 1) + 2]
                    same = _uniform(cell)
                if same:
                    out[x, y, z] = source[i, j, k]
                else:
                    out[x, y, z] = _winner(cell, at[0] - i, at[1] - j, at[2] - k, ids, shares)


@njit(nogil=True, cache=True)
def _uniform(cell):
    first = cell[0, 0, 0]
    for i in range(cell.shape[0]):
        for j in range(cell.shape[1]):
            for k in range(cell.shape[2]):
                if cell[i, j, k] != first:
                    return False
    return True


@njit(nogil=True, cache=True)
def _winner(cell, x, y, z, ids, shares):
    num = 0
    for i in range(cell.shape[0]):
        for j in range(cell.shape[1]):
            for k in range(cell.shape[2]):
                share = (x if i else 1.0 - x) * (y if j else 1.0 - y) * (z if k else 1.0 - z)
                at = 0
                while at < num and ids[at] != cell[i, j, k]:
                    at += 1
                if at == num:
                    ids[at], shares[at] = cell[i, j, k], 0.0
                    num += 1
                shares[at] += share
    top = shares[:num].max()
    best = -1
    for at in range(num):
        if shares[at] > top - SNAP and (best < 0 or ids[at] < ids[best]):
            best = at
    return ids[best]
