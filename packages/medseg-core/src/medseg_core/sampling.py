"""Values of an array at the voxels of another grid: copied where they coincide, else linear, cubic or voted.

Separable maps (scaling, flips, axis order, shifts) go axis by axis; any other affine voxel by voxel.
"""

import math
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
        return _by_voxel(source, matrix, shape, how=how, outside=outside).astype(kept, copy=False)
    inside = tuple(slice(line.start, line.stop) for line in lines)
    if all(line.stop - line.start == num for line, num in zip(lines, shape, strict=True)):
        return _by_axis(source, lines, how).astype(kept, order="C", copy=False)
    result = np.full(shape, _outside(voxels, how, outside), dtype=kept)
    if all(line.at.size for line in lines):
        result[inside] = _by_axis(source, lines, how)
    return result


@dataclass(frozen=True)
class _Line:
    """One output axis of a separable map: which outputs lie inside the input, and where they read."""

    start: int
    stop: int
    cut: slice | None  # the inputs themselves, where outputs coincide with them
    at: np.ndarray  # (stop - start,) input coordinates, kept between the outermost centres


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
    at = np.where(np.abs(at - place) < SNAP, place, at)
    return _Line(start, stop, cut, np.clip(at, 0, source - 1))


def _outside(voxels: np.ndarray, how: str, outside: float | None) -> float:
    if outside is not None:
        return outside
    return 0 if how == "label" else np.fmin.reduce(voxels, axis=None)


def _by_axis(source: np.ndarray, lines: tuple[_Line, ...], how: str) -> np.ndarray:
    """Copies first, then the axes that shrink most. The answer is a new array."""
    axes = [axis for axis, line in enumerate(lines) if not line.cut]
    if axes and how == "label":
        source = _plain(source)
        tables = [_table(line.at, num, False) for line, num in zip(lines, source.shape, strict=True)]
        out = np.empty([len(line.at) for line in lines], dtype=source.dtype)
        _vote_by_axis(source, tuple(index for index, _ in tables), tuple(weight for _, weight in tables), out)
        return out
    taken = source[tuple(line.cut or slice(None) for line in lines)]
    if not axes:
        return taken.copy()
    for axis in sorted(axes, key=lambda axis: len(lines[axis].at) / source.shape[axis]):
        if how == "cubic":
            taken = spline_filter1d(taken, 3, axis=axis, output=_real(source), mode="mirror")
        index, weight = _table(lines[axis].at, taken.shape[axis], how == "cubic")
        before, after = taken.shape[:axis], taken.shape[axis + 1 :]
        out = np.empty((*before, len(index), *after), dtype=_real(source))
        flat = (math.prod(before), -1, math.prod(after))
        _along(_plain(taken).reshape(flat), index, weight, out.reshape(flat))
        taken = out
    return taken


def _by_voxel(
    source: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], *, how: str, outside: float | None
) -> np.ndarray:
    filler = _outside(source, how, outside)
    if how == "cubic":
        source = spline_filter(source, 3, output=_real(source), mode="mirror")
    source = _plain(source)
    if how == "label":
        out = np.full(shape, filler, dtype=source.dtype)
        _vote(source, matrix, out)
    else:
        out = np.full(shape, filler, dtype=_real(source))
        _blend(source, matrix, how == "cubic", out)
    return out


def _real(source: np.ndarray) -> type[np.floating]:
    return np.float64 if source.dtype.kind == "f" and source.dtype.itemsize >= 8 else np.float32


def _plain(source: np.ndarray) -> np.ndarray:
    """Contiguous, native, and of a type that compiled code knows."""
    if source.dtype.kind == "f":
        return np.ascontiguousarray(source, dtype=_real(source))
    return np.ascontiguousarray(source, dtype=np.uint8 if source.dtype.kind == "b" else source.dtype.newbyteorder("="))


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
    """The winner of 8 neighbours; what lies outside keeps the value `out` came with."""
    at, index, weight = np.empty(3), np.empty((3, 2), np.int64), np.empty((3, 2))
    ids, shares = np.empty(8, source.dtype), np.empty(8)
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            for z in range(out.shape[2]):
                if not _place(matrix, x, y, z, source.shape, at):
                    continue
                for axis in range(3):
                    _taps(at[axis], source.shape[axis], False, index[axis], weight[axis])
                for n in range(8):
                    i, j, k = n >> 2, (n >> 1) & 1, n & 1
                    ids[n] = source[index[0, i], index[1, j], index[2, k]]
                    shares[n] = weight[0, i] * weight[1, j] * weight[2, k]
                out[x, y, z] = _winner(ids, shares)


@njit(nogil=True, cache=True)
def _vote_by_axis(source, index, weight, out):
    """The winner of 8 neighbours. Most cells hold one id and need no vote; outputs in one cell look only once."""
    ids, shares = np.empty(8, source.dtype), np.empty(8)
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            rows = source[index[0][x, 0]], source[index[0][x, 1]]
            a, b = rows[0][index[1][y, 0]], rows[0][index[1][y, 1]]
            c, d = rows[1][index[1][y, 0]], rows[1][index[1][y, 1]]
            last, same = -1, False
            for z in range(out.shape[2]):
                k, m = index[2][z, 0], index[2][z, 1]
                if k != last:
                    last = k
                    ids[0], ids[1], ids[2], ids[3] = a[k], a[m], b[k], b[m]
                    ids[4], ids[5], ids[6], ids[7] = c[k], c[m], d[k], d[m]
                    same = True
                    for n in range(1, 8):
                        same &= ids[n] == ids[0]
                if same:
                    out[x, y, z] = ids[0]
                    continue
                for n in range(8):
                    shares[n] = weight[0][x, n >> 2] * weight[1][y, (n >> 1) & 1] * weight[2][z, n & 1]
                out[x, y, z] = _winner(ids, shares)


@njit(nogil=True, cache=True)
def _winner(ids, shares):
    """The id with the largest share, the smallest of those that tie."""
    best, most = ids[0], -1.0
    for n in range(8):
        share = 0.0
        for m in range(8):
            if ids[m] == ids[n]:
                share += shares[m]
        if share > 0.5 + SNAP:
            return ids[n]
        if share > most + SNAP or (share > most - SNAP and ids[n] < best):
            best, most = ids[n], share
    return best
