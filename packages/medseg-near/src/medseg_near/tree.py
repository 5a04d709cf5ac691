"""Branching tubes as centre lines with radii: a vessel tree whose surface is a formula, on any grid.

Axes: N nodes of a tree, X Y Z voxels in file order, (..., 3) places in mm. Nodes are joined by round cones: all balls
between two nodes whose radius changes evenly from one to the other.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import CubicSpline

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid


@dataclass(frozen=True, eq=False)
class Tree:
    """Nodes, each joined with the one before it by a round cone.

    Args:
        points_mm: (N, 3) places of the nodes, N at least 1.
        radii_mm: (N,) above 0.
        parents: (N,) number of the node before each, always a smaller one; -1 where a tree starts.

    Raises:
        MedsegError: other shapes, a value that is not finite, a radius of 0 or less, or a parent that comes later.
    """

    points_mm: np.ndarray
    radii_mm: np.ndarray
    parents: np.ndarray

    def __post_init__(self) -> None:
        points_mm, radii_mm = np.array(self.points_mm, float), np.array(self.radii_mm, float)
        parents = np.array(self.parents, int)
        num = len(points_mm) if points_mm.ndim else 0
        if num < 1 or points_mm.shape != (num, 3) or radii_mm.shape != (num,) or parents.shape != (num,):
            raise MedsegError(
                f"a tree has points (N, 3), radii (N,) and parents (N,), got {points_mm.shape}, {radii_mm.shape} and "
                f"{parents.shape}; give one radius and one parent for each of at least one point"
            )
        if not np.isfinite(points_mm).all() or not (np.isfinite(radii_mm) & (radii_mm > 0)).all():
            raise MedsegError(f"the thinnest radius is {radii_mm.min():g} mm; places are finite and radii above 0 mm")
        wrong = np.flatnonzero((parents < -1) | (parents >= np.arange(num)))
        if len(wrong):
            raise MedsegError(f"node {wrong[0]} has the parent {parents[wrong[0]]}; give an earlier node, or -1")
        for name, values in (("points_mm", points_mm), ("radii_mm", radii_mm), ("parents", parents)):
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    @property
    def ends(self) -> np.ndarray:
        """Numbers of the nodes that none follows, ascending."""
        return np.setdiff1d(np.arange(len(self.parents)), self.parents)

    @property
    def length_mm(self) -> float:
        """Of all centre lines together."""
        joined = self.parents >= 0
        return float(np.linalg.norm(self.points_mm[joined] - self.points_mm[self.parents[joined]], axis=1).sum())

    def branch(self, node: int, points_mm: np.ndarray, radii_mm: np.ndarray) -> "Tree":
        """The tree with one more course, (M, 3) and (M,), that goes off at a node."""
        first, num = len(self.parents), len(points_mm)
        return Tree(
            np.concatenate([self.points_mm, points_mm]),
            np.concatenate([self.radii_mm, radii_mm]),
            np.concatenate([self.parents, [node], np.arange(first, first + num - 1)])[: first + num],
        )

    def moved(self, matrix: np.ndarray, shift_mm: np.ndarray, *, thicker: float = 1.0) -> "Tree":
        """Every node at `matrix @ point + shift_mm`; radii times `thicker`, whatever the matrix."""
        return replace(self, points_mm=self.points_mm @ matrix.T + shift_mm, radii_mm=self.radii_mm * thicker)

    def distance_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) places -> (...) signed distance to the surface in mm, negative inside.

        Outside it is exact; inside, where cones overlap, the surface is at least so far away.
        """
        near_mm = np.full(np.shape(points_mm)[:-1], np.inf)
        for n in range(len(self.parents)):
            np.minimum(near_mm, self._cone_mm(n, np.asarray(points_mm, float)), out=near_mm)
        return near_mm

    def distance_on(self, grid: Grid, *, reach_mm: float = 0.0) -> np.ndarray:
        """(X, Y, Z) float32, `distance_mm` of the voxel centres up to `reach_mm`; beyond it, infinity."""
        near_mm = np.full(grid.shape, np.inf, np.float32)
        to_index = np.linalg.inv(grid.affine)
        wide = np.linalg.norm(to_index[:3, :3], axis=1)  # indices that a ball of 1 mm reaches along each axis
        for n, parent in enumerate(self.parents):
            both = [n, parent if parent >= 0 else n]
            centres = self.points_mm[both] @ to_index[:3, :3].T + to_index[:3, 3]
            reach = (self.radii_mm[both] + reach_mm)[:, None] * wide
            first = np.maximum(np.ceil((centres - reach).min(0)), 0).astype(int)
            stop = np.minimum(np.floor((centres + reach).max(0)) + 1, grid.shape).astype(int)
            if (first < stop).all():
                box = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
                index = np.stack(np.meshgrid(*map(np.arange, first, stop), indexing="ij"), -1)
                here_mm = self._cone_mm(n, index @ grid.affine[:3, :3].T + grid.affine[:3, 3])
                near_mm[box] = np.minimum(near_mm[box], here_mm)
        near_mm[near_mm > reach_mm] = np.inf
        return near_mm

    def mask(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) bool: voxels whose centre lies inside, and those that a centre line runs through.

        The latter keep a vessel that is thinner than a voxel in one part (26 neighbours).
        """
        inside = self.distance_on(grid) <= 0
        to_index, step_mm = np.linalg.inv(grid.affine), min(grid.spacing_mm) / 4
        for point_mm, parent in zip(self.points_mm, self.parents, strict=True):
            before_mm = self.points_mm[parent] if parent >= 0 else point_mm
            num = 2 + int(np.linalg.norm(point_mm - before_mm) / step_mm)
            line = np.linspace(before_mm, point_mm, num) @ to_index[:3, :3].T + to_index[:3, 3]
            at = np.rint(line).astype(int)
            at = at[((at >= 0) & (at < grid.shape)).all(1)]
            inside[tuple(at.T)] = True
        return inside

    def _cone_mm(self, n: int, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) -> (...) signed distance to the round cone from the parent of node n to it.

        At s mm from the parent, the ball has the radius r - k s and is hypot(across, along - s) - r + k s away. That is
        convex in s, and least where (along - s) = k hypot(across, along - s), or at an end.
        """
        stop, parent = self.points_mm[n], self.parents[n] if self.parents[n] >= 0 else n
        start, r, r_stop = self.points_mm[parent], self.radii_mm[parent], self.radii_mm[n]
        length = float(np.linalg.norm(stop - start))
        if length <= abs(r - r_stop):  # one ball holds the other
            centre = start if r >= r_stop else stop
            return np.linalg.norm(points_mm - centre, axis=-1) - max(r, r_stop)
        from_start, k = points_mm - start, (r - r_stop) / length
        along = from_start @ ((stop - start) / length)
        across = np.sqrt(np.maximum((from_start**2).sum(-1) - along**2, 0))
        s = np.clip(along - k / np.sqrt(1 - k**2) * across, 0, length)
        return np.hypot(across, along - s) - r + k * s


def stem(points_mm: np.ndarray, radii_mm: np.ndarray) -> Tree:
    """A tree of one course, (N, 3) and (N,), from its first point to its last."""
    return Tree(points_mm, radii_mm, np.arange(len(points_mm)) - 1)


def smooth_way(waypoints_mm: np.ndarray, *, step_mm: float) -> np.ndarray:
    """A smooth line through (M, 3) places, as (N, 3) places that lie some `step_mm` apart along it.

    Raises:
        MedsegError: fewer than two places, or two in a row that are the same.
    """
    waypoints_mm = np.asarray(waypoints_mm, float)
    chords_mm = np.linalg.norm(np.diff(waypoints_mm, axis=0), axis=1)
    if len(chords_mm) < 1 or not (chords_mm > 0).all():
        raise MedsegError(f"a way has two places or more and no two in a row alike, got {waypoints_mm.tolist()}")
    at = np.append(0, np.cumsum(chords_mm))
    spline = CubicSpline(at, waypoints_mm, bc_type="natural")
    fine = np.linspace(0, at[-1], 1 + 20 * len(at))
    fine_mm = np.append(0, np.cumsum(np.linalg.norm(np.diff(spline(fine), axis=0), axis=1)))
    num = max(2, 1 + int(np.rint(fine_mm[-1] / step_mm)))
    return spline(np.interp(np.linspace(0, fine_mm[-1], num), fine_mm, fine))


def taper(points_mm: np.ndarray, start_mm: float, stop_mm: float) -> np.ndarray:
    """(N,) radii of a course that change evenly along it."""
    at = np.append(0, np.cumsum(np.linalg.norm(np.diff(points_mm, axis=0), axis=1)))
    return start_mm + (stop_mm - start_mm) * at / max(at[-1], np.finfo(float).tiny)
