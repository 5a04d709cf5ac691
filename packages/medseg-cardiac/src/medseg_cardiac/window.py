"""The square of a plane that a network sees, and the way back.

Axes: H W a plane in its file's order, h w the window; D the two components of a displacement, of which component i
moves along array axis i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import affine_transform

from medseg_core.errors import MedsegError

FLAT = 0.05  # sine of the angle between two planes, from which one is no picture of the other


@dataclass(frozen=True, eq=False)
class Window:
    """What stands at u in the window stands at matrix @ u + offset in the plane, both in pixels.

    Args:
        matrix, offset: (2, 2) and (2,).
        size: edge of the window.
    """

    matrix: np.ndarray
    offset: np.ndarray
    size: int

    def take(self, planes: np.ndarray) -> np.ndarray:
        """(..., H, W) -> (..., h, w) float32, linear between pixels; beyond the plane its edge holds."""
        return self._sampled(planes, self.matrix, self.offset, (self.size, self.size), mode="nearest")

    def take_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool -> (h, w) bool: at least half inside."""
        taken = self._sampled(mask, self.matrix, self.offset, (self.size, self.size), mode="grid-constant")
        return taken >= 0.5

    def home(self, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """(..., h, w) -> (..., H, W) float32, 0 beyond the window."""
        back = np.linalg.inv(self.matrix)
        return self._sampled(values, back, -back @ self.offset, shape, mode="grid-constant")

    def flow_home(self, flow: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """A displacement (..., 2, h, w) in pixels of the window as (..., 2, H, W) in pixels of the plane."""
        return self.home(np.einsum("ij,...jhw->...ihw", self.matrix, flow), shape)

    def points_home(self, points: np.ndarray) -> np.ndarray:
        """(P, 2) in the window -> (P, 2) in the plane."""
        return points @ self.matrix.T + self.offset

    def points(self, points: np.ndarray) -> np.ndarray:
        """(P, 2) in the plane -> (P, 2) in the window."""
        return (points - self.offset) @ np.linalg.inv(self.matrix).T

    @staticmethod
    def _sampled(
        planes: np.ndarray, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, int], *, mode: str
    ) -> np.ndarray:
        flat = np.asarray(planes).reshape(-1, *planes.shape[-2:])
        taken = [
            affine_transform(plane.astype(np.float32), matrix, offset, output_shape=shape, order=1, mode=mode)
            for plane in flat
        ]
        return np.stack(taken).reshape(*planes.shape[:-2], *shape)


def window_about(centre: Sequence[float], spacing_mm: tuple[float, float], *, pixel_mm: float, size: int) -> Window:
    """A window of square pixels about a place; where pixels keep their size it starts on a pixel, so nothing blurs.

    Args:
        centre: (h, w) in pixels of the plane.
    """
    step = pixel_mm / np.array(spacing_mm)
    same = np.abs(step - 1) < 1e-3
    step = np.where(same, 1.0, step)
    offset = np.array(centre) - step * ((size - 1) / 2)
    return Window(np.diag(step), np.where(same, np.rint(offset), offset), size)


def window_through(
    window: Window,
    cine: np.ndarray | None,
    other: np.ndarray | None,
    *,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    spacings_mm: tuple[tuple[float, float], tuple[float, float]],
) -> Window:
    """The same square of the patient in another picture, such as LGE: by both affines, else centre on centre.

    Args:
        window: of the cine.
        cine, other: (4, 4) index (h, w, 0) -> RAS mm, or None.
        shapes, spacings_mm: of cine and other.

    Raises:
        MedsegError: planes that are not parallel.
    """
    if cine is None or other is None:
        scale = np.diag(np.array(spacings_mm[0]) / np.array(spacings_mm[1]))
        middles = [(np.array(shape) - 1) / 2 for shape in shapes]
        matrix, offset = scale, middles[1] - scale @ middles[0]
    else:
        normals = [np.cross(a[:3, 0], a[:3, 1]) for a in (cine, other)]
        one, two = (n / np.linalg.norm(n) for n in normals)
        if np.linalg.norm(np.cross(one, two)) > FLAT:
            angle = np.degrees(np.arcsin(min(1.0, np.linalg.norm(np.cross(one, two)))))
            raise MedsegError(
                f"the planes of cine and LGE stand {angle:.0f} degrees to each other; reformat one of them"
            )
        back = np.linalg.pinv(other[:3, :2])
        matrix, offset = back @ cine[:3, :2], back @ (cine[:3, 3] - other[:3, 3])
    return Window(matrix @ window.matrix, matrix @ window.offset + offset, window.size)
