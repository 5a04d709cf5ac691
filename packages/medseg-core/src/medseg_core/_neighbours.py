"""Compiled sums and votes over neighbouring voxels, for `medseg_core.sampling`, which prepares what they take.

The taps of an axis are what each of its M outputs reads: (M, T) indices of inputs and (M, T) float64 weights.
"""

import math

import numpy as np
from numba import njit

SNAP = 1e-6  # voxels, and shares of a vote: rounding errors of float64 geometry are smaller
POLE = math.sqrt(3.0) - 2.0  # of the cubic B-spline's inverse filter (Unser, 1999)
BLOCK = 64  # lines that are worked on side by side: 512 voxels of each, in float64, are 256 KiB of cache


@njit(nogil=True, cache=True)
def reach(at, size, cubic, index, weight):
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
def table(at, size, cubic):
    taps = 4 if cubic else 2
    index, weight = np.empty((len(at), taps), np.int64), np.empty((len(at), taps))
    for i in range(len(at)):
        reach(at[i], size, cubic, index[i], weight[i])
    return index, weight


@njit(nogil=True, cache=True)
def between(source, index, weight, out):
    """Weighted sums of two along the middle axis: (A, N, B) -> (A, M, B)."""
    near, far, left, right = columns(index, weight)
    for a in range(out.shape[0]):
        if out.shape[2] == 1:
            pick(source[a, :, 0], near, far, left, right, out[a, :, 0])
            continue
        for m in range(out.shape[1]):
            mix(source[a, near[m]], left[m], source[a, far[m]], right[m], out[a, m])


@njit(nogil=True, cache=True)
def linear(source, index, weight, out):
    """Weighted sums of two along each axis, (X, Y, Z) -> (L, M, N), with no array between: planes stay in the cache.

    Args:
        index, weight: of three axes, (L, 2), (M, 2), (N, 2).
    """
    near, far, left, right = columns(index[2], weight[2])
    planes, held = np.empty((2, out.shape[1], out.shape[2]), out.dtype), np.full(2, -1)
    rows, kept = np.empty((2, out.shape[2]), out.dtype), np.empty(2, np.int64)
    mixed = np.empty(source.shape[2], out.dtype)
    for x in range(out.shape[0]):
        for i in index[0][x]:  # neighbours: one is even, one is odd
            if held[i % 2] == i:
                continue
            held[i % 2], kept[:], plane = i, -1, planes[i % 2]
            for y in range(out.shape[1]):
                j, k, v, w = index[1][y, 0], index[1][y, 1], weight[1][y, 0], weight[1][y, 1]
                if out.shape[1] < source.shape[1]:
                    mix(source[i, j], v, source[i, k], w, mixed)
                    pick(mixed, near, far, left, right, plane[y])
                    continue
                for row in index[1][y]:
                    if kept[row % 2] != row:
                        kept[row % 2] = row
                        pick(source[i, row], near, far, left, right, rows[row % 2])
                mix(rows[j % 2], v, rows[k % 2], w, plane[y])
        one, other = planes[index[0][x, 0] % 2], planes[index[0][x, 1] % 2]
        for y in range(out.shape[1]):
            mix(one[y], weight[0][x, 0], other[y], weight[0][x, 1], out[x, y])


@njit(nogil=True, cache=True)
def columns(index, weight):
    """Both taps of each output, each in one piece: `pick` takes half the time."""
    return index[:, 0].copy(), index[:, 1].copy(), weight[:, 0].copy(), weight[:, 1].copy()


@njit(nogil=True, cache=True)
def pick(line, near, far, left, right, row):
    """Fills a row with weighted sums of two places of a line."""
    for n in range(len(row)):
        row[n] = left[n] * line[near[n]] + right[n] * line[far[n]]


@njit(nogil=True, cache=True)
def mix(one, v, other, w, row):
    """Fills a row with the weighted sum of two."""
    for n in range(len(row)):
        row[n] = v * one[n] + w * other[n]


@njit(nogil=True, cache=True)
def gather(source, index, weight, spline, out):
    """Weighted sums of any number along the middle axis, (A, N, B) -> (A, M, B), of spline coefficients if asked."""
    size, num_b = source.shape[1:]
    num = source.shape[0] * num_b
    lines, total = np.zeros((size, BLOCK)), np.empty(BLOCK)
    a, b = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for first in range(0, num, BLOCK):
        width = min(BLOCK, num - first)
        for j in range(width):
            a[j], b[j] = divmod(first + j, num_b)
        for n in range(size):
            row = lines[n]
            for j in range(width):
                row[j] = source[a[j], n, b[j]]
        if spline:
            coefficients(lines)
        for m in range(out.shape[1]):
            total[:] = 0.0
            for k in range(index.shape[1]):
                row, w = lines[index[m, k]], weight[m, k]
                for j in range(BLOCK):
                    total[j] += w * row[j]
            for j in range(width):
                out[a[j], m, b[j]] = total[j]


@njit(nogil=True, cache=True)
def coefficients(lines):
    """(N, L) values -> coefficients of the cubic B-spline through them, mirrored at both ends, in place (Unser, 1999).

    One pass forth and one back over N; far beyond 40 voxels nothing is left of a value at the start.
    """
    size = lines.shape[0]
    if size == 1:
        return
    first, power = lines[0], 1.0
    for n in range(1, min(size, 40)):
        power *= POLE
        back = POLE ** (2 * size - 2 - n) if n < size - 1 else 0.0
        row, w = lines[n], power + back
        for j in range(len(row)):
            first[j] += w * row[j]
    scale = 6.0 / (1.0 - POLE ** (2 * size - 2))
    for j in range(len(first)):
        first[j] *= scale
    for n in range(1, size):
        before, row = lines[n - 1], lines[n]
        for j in range(len(row)):
            row[j] = 6.0 * row[j] + POLE * before[j]
    before, last = lines[size - 2], lines[size - 1]
    for j in range(len(last)):
        last[j] = POLE / (POLE * POLE - 1.0) * (last[j] + POLE * before[j])
    for n in range(size - 2, -1, -1):
        after, row = lines[n + 1], lines[n]
        for j in range(len(row)):
            row[j] = POLE * (after[j] - row[j])


@njit(nogil=True, cache=True)
def place(matrix, x, y, z, shape, at):
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
def blend(source, matrix, cubic, out):
    """Weighted sums of 8 or 64 neighbours; what lies outside keeps the value `out` came with."""
    taps = 4 if cubic else 2
    at, index, weight = np.empty(3), np.empty((3, taps), np.int64), np.empty((3, taps))
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            for z in range(out.shape[2]):
                if not place(matrix, x, y, z, source.shape, at):
                    continue
                for axis in range(3):
                    reach(at[axis], source.shape[axis], cubic, index[axis], weight[axis])
                total = 0.0
                for i in range(taps):
                    for j in range(taps):
                        row = 0.0
                        for k in range(taps):
                            row += weight[2, k] * source[index[0, i], index[1, j], index[2, k]]
                        total += weight[0, i] * weight[1, j] * row
                out[x, y, z] = total


@njit(nogil=True, cache=True)
def vote(source, matrix, out):
    """The winner of 8 neighbours; what lies outside keeps the value `out` came with."""
    at, index, weight = np.empty(3), np.empty((3, 2), np.int64), np.empty((3, 2))
    ids, shares = np.empty(8, source.dtype), np.empty(8)
    for x in range(out.shape[0]):
        for y in range(out.shape[1]):
            for z in range(out.shape[2]):
                if not place(matrix, x, y, z, source.shape, at):
                    continue
                for axis in range(3):
                    reach(at[axis], source.shape[axis], False, index[axis], weight[axis])
                for n in range(8):
                    i, j, k = n >> 2, (n >> 1) & 1, n & 1
                    ids[n] = source[index[0, i], index[1, j], index[2, k]]
                    shares[n] = weight[0, i] * weight[1, j] * weight[2, k]
                out[x, y, z] = winner(ids, shares)


@njit(nogil=True, cache=True)
def vote_by_axis(source, index, weight, out):
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
                out[x, y, z] = winner(ids, shares)


@njit(nogil=True, cache=True)
def winner(ids, shares):
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
