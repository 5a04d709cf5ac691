"""Where a shape is looked at while it is learnt: near its surface and anywhere, with the truth at each point.

Axes: P points; X Y Z voxels of a label in its file's own order. Points lie in [-1, 1]^3, the cube about the middle of a
structure, from left to right, to anterior and to superior.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, map_coordinates

from medseg_core.draw import Batch, Draw
from medseg_near.settings import FitConfig
from medseg_near.shapes import Shape

CPU_POINTS = 32_768


@dataclass(frozen=True, eq=False)
class Frame:
    """The cube of a structure, and its way to the voxels of the crop.

    Args:
        matrix, offset: voxel = matrix @ point + offset, (3, 3) and (3,).
    """

    matrix: np.ndarray
    offset: np.ndarray

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """(P, 3) points of the cube -> places among the voxels."""
        return points @ self.matrix.T + self.offset

    def points(self, voxels: np.ndarray) -> np.ndarray:
        """(P, 3) places among the voxels -> points of the cube."""
        return (voxels - self.offset) @ np.linalg.inv(self.matrix).T


def frame_of(shape: Shape, half_mm: float) -> Frame:
    """The cube of an edge of 2 `half_mm` about the middle of a shape's box, along R, A and S."""
    to_voxels = np.linalg.inv(shape.grid.affine)
    return Frame(to_voxels[:3, :3] * half_mm, to_voxels[:3, :3] @ shape.centre_mm + to_voxels[:3, 3])


def inside(label: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """(P,) bool: whether a label, trilinear between its voxels and nothing beyond them, is at least half there."""
    return map_coordinates(label.view(np.uint8), voxels.T, output=np.float32, order=1, mode="grid-constant") >= 0.5


def band_of(label: np.ndarray, radius: float) -> np.ndarray:
    """(M,) flat places of the voxels within `radius` voxels of the surface, on both of its sides.

    This is dilation minus erosion, by a ball in voxels of the label's own axes.
    """
    padded = np.pad(label, 1)
    within, beyond = (distance_transform_edt(mask)[1:-1, 1:-1, 1:-1] for mask in (padded, ~padded))
    return np.flatnonzero(np.where(label, within, beyond) <= radius).astype(np.int32)


class Points:
    """Points of a case: `share` of them near its surface, the others anywhere in the cube; see `draw.Samples`.

    A sample has `case`, `points` (P, 3), `inside` (P,), 1 within the structure, and with a picture `picture` (P, 1).

    Args:
        shapes: in the order of their latents.
        half_mm: of the cube.
        num_points: P.
    """

    def __init__(self, shapes: Sequence[Shape], config: FitConfig, *, half_mm: float, num_points: int) -> None:
        self.shapes, self.config = list(shapes), config
        self.half_mm, self.num_points = half_mm, num_points
        self.frames = [frame_of(shape, half_mm) for shape in self.shapes]
        self.bands = lru_cache(maxsize=512)(self._band)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "bands"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.bands = lru_cache(maxsize=512)(self._band)

    def __getitem__(self, draw: Draw) -> Batch:
        shape, frame, rng = self.shapes[draw.index], self.frames[draw.index], draw.numpy()
        num_near = round(share_at(draw.epoch, self.config) * self.num_points)
        points = rng.uniform(-1, 1, (self.num_points, 3))
        voxels = frame.voxels(points)
        band = self.bands(draw.index)
        near = np.stack(np.unravel_index(band[rng.integers(len(band), size=num_near)], shape.label.shape), 1)
        voxels[:num_near] = near + rng.uniform(-0.5, 0.5, near.shape)
        points[:num_near] = frame.points(voxels[:num_near])
        sample = {
            "case": torch.tensor(draw.index),
            "points": torch.from_numpy(points.astype(np.float32)),
            "inside": torch.from_numpy(inside(shape.label, voxels).astype(np.float32)),
        }
        if self.config.appearance:
            sample["picture"] = torch.from_numpy(picture_at(shape, voxels))
        return sample

    def _band(self, index: int) -> np.ndarray:
        return band_of(np.asarray(self.shapes[index].label), self.config.band_radius)


def picture_at(shape: Shape, voxels: np.ndarray) -> np.ndarray:
    """(P, 1) float32 of the CT at places among the voxels; beyond the crop its edge holds."""
    image = np.asarray(shape.image, np.float32)
    return map_coordinates(image, voxels.T, order=1, mode="nearest")[:, None].astype(np.float32)


def share_at(epoch: int, config: FitConfig) -> float:
    """The share of points near the surface in an epoch, from 0."""
    parts = config.curriculum
    return parts[min(len(parts) - 1, len(parts) * epoch // config.epochs)]


def expected_positives(shape: Shape, config: FitConfig, *, half_mm: float, share: float) -> float:
    """What share of the points geometry says is inside."""
    label = np.asarray(shape.label)
    anywhere = label.sum() * np.prod(shape.spacing_mm) / (2 * half_mm) ** 3
    return float(share * label.ravel()[band_of(label, config.band_radius)].mean() + (1 - share) * anywhere)
