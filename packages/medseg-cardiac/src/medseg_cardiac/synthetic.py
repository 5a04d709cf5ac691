"""Motion that is made, and so known: squeezes, twists and bends like those of a heart, about the middle of a picture.

Axes: h w a square of `size` pixels; components move along array axes, in pixels.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import zoom

THICKENED, POOL_PX = 0.5, (8.0, 25.0)  # share of the fields in which muscle keeps its area, about pools of such radii
SQUEEZED = 0.75  # share of the fields that look up farther in than they stand: a relaxed heart as the fixed frame


@dataclass(frozen=True)
class Motion:
    """The largest of what is drawn.

    Args:
        squeeze: share of the distance to the middle, on average around the ring; systole reaches 0.4.
        twist_rad: of the rotation.
        bend_px: standard deviation of the smooth rest.
        shift_px: of everything.
    """

    squeeze: float = 0.4
    twist_rad: float = 0.15
    bend_px: float = 1.5
    shift_px: float = 2.0


def made_motion(size: int, rng: np.random.Generator, *, most: Motion | None = None) -> np.ndarray:
    """(2, size, size) float32: a displacement that is largest near the middle and smooth everywhere.

    The squeeze differs around the ring, as infarcts and the septum do.
    """
    most = most or Motion()
    middle = (size - 1) / 2 + rng.uniform(-6, 6, (2, 1, 1))
    away = np.indices((size, size)) - middle
    radius = np.sqrt((away**2).sum(0))
    near = np.exp(-((radius / rng.uniform(25, 55)) ** 2))
    angle = np.arctan2(away[0], away[1])
    squeeze = rng.uniform(0, most.squeeze) * (1.0 if rng.random() < SQUEEZED else -0.6)
    for lobes, depth in ((1, 0.6), (2, 0.3)):
        squeeze = squeeze * (1 + rng.uniform(0, depth) * np.cos(lobes * angle - rng.uniform(0, 2 * np.pi)))
    shrink = as_muscle(radius, rng.uniform(*POOL_PX)) if rng.random() < THICKENED else near
    twist = rng.uniform(-most.twist_rad, most.twist_rad)
    turned = np.stack([-away[1], away[0]])
    cells = int(rng.integers(4, 9))
    bend = smooth_field(rng.standard_normal((2, cells, cells)), size)
    bend *= rng.uniform(0, most.bend_px) * 4 / cells
    shift = rng.uniform(-most.shift_px, most.shift_px, (2, 1, 1))
    return (twist * turned * near - squeeze * away * shrink + bend + shift).astype(np.float32)


def as_muscle(radius: np.ndarray, pool_px: float) -> np.ndarray:
    """How much of the squeeze is left at a radius, 1 within the pool, when area is kept beyond it.

    Muscle that keeps its area thickens as its inner edge moves in: a pool of radius a that shrinks by s a, which is
    little, takes in what lies at r by about s a^2 / r, which is s (a / r)^2 of r.
    """
    return np.minimum(1.0, (pool_px / np.maximum(radius, 1e-3)) ** 2)


def smooth_field(coarse: np.ndarray, size: int) -> np.ndarray:
    """(..., n, n) numbers of a coarse grid as (..., size, size), by cubic splines."""
    weights = _spline(coarse.shape[-1], size)
    return weights @ coarse @ weights.T


@lru_cache(maxsize=64)
def _spline(num: int, size: int) -> np.ndarray:
    """(size, num): how much each of `num` knots counts at `size` places; `zoom` is linear and goes axis by axis."""
    return zoom(np.eye(num), (size / num, 1), order=3, grid_mode=True, mode="nearest")
