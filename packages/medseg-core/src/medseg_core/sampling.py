"""Values of an array at the voxels of another grid: copied where they coincide, else linear, cubic or voted.

Separable maps (scaling, flips, axis order, shifts) go axis by axis; any other affine voxel by voxel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation

from medseg_core._neighbours import SNAP, between, blend, gather, linear, table, vote, vote_by_axis

HOW = ("linear", "cubic", "label")
SAME = 1e-3  # voxels: positions this close are one place; affines kept in float32 are off by less
BELL = 4.0  # standard deviations at which a Gaussian is cut off, as SciPy does


def sample(
    voxels: np.ndarray,
    matrix: np.ndarray,
    *,
    shape: tuple[int, int, int],
    how: str,
    outside: float | None = None,
    antialias: bool = False,
) -> np.ndarray:
    """An array of `shape` whose voxel at index i has the value of `voxels` at index matrix @ i.

    Args:
        voxels: (X, Y, Z) numbers of any dtype and memory order.
        matrix: (4, 4) output index -> input index.
        how: one of `HOW`; see `medseg_core.volume.resample` for what they, `outside` and `antialias` mean.
    """
    if voxels.flags.f_contiguous and not voxels.flags.c_contiguous:
        turned = matrix[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
        return sample(voxels.T, turned, shape=shape[::-1], how=how, outside=outside, antialias=antialias).T
    kept = voxels.dtype.newbyteorder("=") if how == "label" or voxels.dtype.kind == "f" else np.dtype(np.float32)
    nearest = io_orientation(matrix)[:, 0].astype(int)
    source, matrix = voxels.transpose(nearest), matrix[[*nearest, 3]]
    sigmas = _sigmas(matrix) if antialias else np.zeros(3)
    lines = _lines(matrix, source.shape, shape, sigmas)
    if lines is None:
        filled = _outside(voxels, how, outside)
        return _by_voxel(source, matrix, shape, how=how, outside=filled, sigmas=sigmas).astype(kept, copy=False)
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
    sigma: float  # of the Gaussian over the inputs


def _sigmas(matrix: np.ndarray) -> np.ndarray:
    """(3,) standard deviation of the anti-aliasing Gaussian along each input axis, in voxels.

    A step of f voxels asks for (f - 1) / 2 along its own direction; oblique steps share their variance among the axes.
    """
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    variances = (np.maximum(steps - 1, 0) / 2) ** 2
    return np.sqrt((matrix[:3, :3] / steps) ** 2 @ variances)


def _radius(sigma: float) -> int:
    return int(BELL * sigma + 0.5)


def _lines(
    matrix: np.ndarray, source: tuple[int, ...], shape: tuple[int, ...], sigmas: np.ndarray
) -> tuple[_Line, ...] | None:
    """The map axis by axis, or None where it is not separable."""
    scales = np.diag(matrix)[:3]
    if (np.abs(matrix[:3, :3] - np.diag(scales)) @ (np.array(shape) - 1) > SAME).any():
        return None
    return tuple(_line(*parts) for parts in zip(scales, matrix[:3, 3], source, shape, sigmas, strict=True))


def _line(scale: float, offset: float, source: int, num: int, sigma: float) -> _Line:
    at = scale * np.arange(num) + offset
    (inside,) = np.nonzero((at >= -0.5 - SNAP) & (at <= source - 0.5 + SNAP))
    if not inside.size:
        return _Line(0, 0, slice(0), at[:0], sigma)
    start, stop = int(inside[0]), int(inside[-1]) + 1
    at = at[start:stop]
    place = np.rint(at).astype(int)
    step = int(place[1] - place[0]) if len(place) > 1 else 1
    cut = None
    if step and not _radius(sigma) and np.abs(at - place).max() <= SAME and (np.diff(place) == step).all():
        end = int(place[-1]) + step
        cut = slice(int(place[0]), end if end >= 0 else None, step)
    at = np.where(np.abs(at - place) < SNAP, place, at)
    return _Line(start, stop, cut, np.clip(at, 0, source - 1), sigma)


def _outside(voxels: np.ndarray, how: str, outside: float | None) -> float:
    if outside is not None:
        return outside
    return 0 if how == "label" else np.fmin.reduce(voxels, axis=None)


def _by_axis(source: np.ndarray, lines: tuple[_Line, ...], how: str) -> np.ndarray:
    """Copies first, then all axes at once or those that shrink most. The answer is a new array."""
    axes = [axis for axis, line in enumerate(lines) if not line.cut]
    if axes and how == "label":
        source = _plain(source)
        return _at_once(vote_by_axis, source, lines, source.dtype)
    taken = source[tuple(line.cut or slice(None) for line in lines)]
    if not axes:
        return taken.copy()
    if how == "linear" and len(axes) == 3 and not any(_radius(line.sigma) for line in lines):
        return _at_once(linear, _plain(source), lines, _real(source))
    for axis in sorted(axes, key=lambda axis: len(lines[axis].at) / source.shape[axis]):
        taps = table(lines[axis].at, taken.shape[axis], how == "cubic")
        taken = _along(taken, axis, *_blurred(*taps, taken.shape[axis], lines[axis].sigma), spline=how == "cubic")
    return taken


def _at_once(
    work: Callable[..., None], source: np.ndarray, lines: tuple[_Line, ...], dtype: np.dtype | type[np.floating]
) -> np.ndarray:
    """What a compiled function makes of two neighbours along each axis."""
    taps = [table(line.at, num, False) for line, num in zip(lines, source.shape, strict=True)]
    out = np.empty([len(line.at) for line in lines], dtype=dtype)
    work(source, tuple(index for index, _ in taps), tuple(weight for _, weight in taps), out)
    return out


def _by_voxel(
    source: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], *, how: str, outside: float, sigmas: np.ndarray
) -> np.ndarray:
    for axis, (size, sigma) in enumerate(zip(source.shape, sigmas, strict=True)):
        index, weight = _blurred(*table(np.arange(float(size)), size, False), size, sigma)
        if how == "cubic" or index.shape[1] > 2:
            source = _along(source, axis, index, weight, spline=how == "cubic")
    source = _plain(source)
    if how == "label":
        out = np.full(shape, outside, dtype=source.dtype)
        vote(source, matrix, out)
    else:
        out = np.full(shape, outside, dtype=_real(source))
        blend(source, matrix, how == "cubic", out)
    return out


def _along(source: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray, *, spline: bool) -> np.ndarray:
    """Weighted sums along one axis, of the values or of their spline coefficients."""
    before, after = source.shape[:axis], source.shape[axis + 1 :]
    out = np.empty((*before, len(index), *after), dtype=_real(source))
    flat = (math.prod(before), -1, math.prod(after))
    if index.shape[1] == 2 and not spline:
        between(_plain(source).reshape(flat), index, weight, out.reshape(flat))
    else:
        gather(_plain(source).reshape(flat), index, weight, spline, out.reshape(flat))
    return out


def _blurred(index: np.ndarray, weight: np.ndarray, size: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The taps that read through a Gaussian: (M, T) -> (M, T + 2 radius), mirrored at the edges."""
    radius = _radius(sigma)
    if not radius:
        return index, weight
    bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    wide = np.zeros((len(index), index.shape[1] + 2 * radius))
    for tap in range(index.shape[1]):
        wide[:, tap : tap + len(bell)] += weight[:, tap, None] * (bell / bell.sum())
    first = index[:, 0] if index.shape[1] == 2 else index[:, 1] - 1
    period = max(2 * (size - 1), 1)
    place = (first[:, None] - radius + np.arange(wide.shape[1])) % period
    return np.minimum(place, period - place), wide


def _real(source: np.ndarray) -> type[np.floating]:
    return np.float64 if source.dtype.kind == "f" and source.dtype.itemsize >= 8 else np.float32


def _plain(source: np.ndarray) -> np.ndarray:
    """Contiguous, native, and of a type that compiled code knows."""
    if source.dtype.kind == "f":
        return np.ascontiguousarray(source, dtype=_real(source))
    return np.ascontiguousarray(source, dtype=np.uint8 if source.dtype.kind == "b" else source.dtype.newbyteorder("="))
