"""Where the voxels of an array lie in the patient: shape, affine, orientation, spacing; and whether two grids agree."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel.orientations as axes
import numpy as np

from medseg_core.errors import MedsegError

FLATTEST = 1e-3  # share of a box's volume that a sheared voxel must keep; gantry tilts keep more than 0.8
MOST = 2**30  # voxels that a new spacing may always make; beyond, a hundred for each old one, or a header lies


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel centres in space; index (0, 0, 0) is the centre of the first voxel.

    Args:
        shape: voxels along X, Y, Z in the file's own order, each at least 1.
        affine: (4, 4) index -> RAS+ mm; kept as read-only float64.

    Raises:
        MedsegError: another number of axes, or an affine that is not finite, singular, or not an affine.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise MedsegError(f"shape {shape} is not that of a volume; it must be three numbers of at least 1")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise MedsegError(f"an affine has the shape (4, 4), got {affine.shape}")
        if not np.isfinite(affine).all():
            raise MedsegError(f"the affine is not finite: {affine[:3].tolist()}; copy it from the image it belongs to")
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise MedsegError(f"the last row of an affine is 0 0 0 1, got {affine[3].tolist()}")
        with np.errstate(over="ignore", under="ignore"):  # of damaged headers
            lengths = np.linalg.norm(affine[:3, :3], axis=0)
        usable = lengths.all() and np.isfinite(lengths).all()
        if not usable or abs(np.linalg.det(affine[:3, :3] / lengths)) < FLATTEST:
            raise MedsegError(f"the affine is singular: {affine[:3].tolist()}; copy it from the image it belongs to")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along X, Y, Z, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def orientation(self) -> str:
        """Where the index grows to, by the closest patient axes: "RAS" grows to right, anterior, superior."""
        return "".join(axes.aff2axcodes(self.affine))

    def oriented(self, orientation: str = "RAS", spacing_mm: Sequence[float] | None = None) -> "Grid":
        """The same field of view with its axes permuted and flipped, and voxels of another size.

        Oblique grids stay oblique: each axis takes the patient axis it is closest to. A new spacing keeps the centre
        of the field of view; its edges agree to half a new voxel, and exactly where the extent is a whole number
        of voxels.

        Args:
            orientation: one letter of R/L, one of A/P and one of S/I, in any order.
            spacing_mm: three sizes along the new axes; None keeps them.

        Raises:
            MedsegError: another orientation or spacing, or one that makes of few voxels more than memory can hold.
        """
        letters = orientation.upper()
        if (
            sorted("RAS"["RLAPSI".find(c) // 2] for c in letters if c in "RLAPSI") != ["A", "R", "S"]
            or len(letters) != 3
        ):
            raise MedsegError(
                f"orientation {orientation!r} is none of the 48; take one each of R/L, A/P, S/I, like RAS"
            )
        turn = axes.ornt_transform(axes.io_orientation(self.affine), axes.axcodes2ornt(tuple(letters)))
        shape = np.empty(3, dtype=int)
        shape[turn[:, 0].astype(int)] = self.shape
        affine = self.affine @ axes.inv_ornt_aff(turn, self.shape)
        grid = Grid(tuple(shape), affine)
        return grid if spacing_mm is None else grid._with_spacing(np.asarray(spacing_mm, dtype=np.float64))

    def _with_spacing(self, spacing_mm: np.ndarray) -> "Grid":
        if spacing_mm.shape != (3,) or not (np.isfinite(spacing_mm).all() and (spacing_mm > 0).all()):
            raise MedsegError(f"spacing {spacing_mm.tolist()} must be three sizes above 0, in mm")
        old = np.array(self.spacing_mm)
        edges = np.maximum(1, np.rint(np.array(self.shape) * old / spacing_mm))
        if edges.prod() > max(MOST, 100 * math.prod(self.shape)):
            raise MedsegError(
                f"voxels of {spacing_mm.tolist()} mm would make a grid of {' x '.join(f'{n:.3g}' for n in edges)} of "
                f"one whose header says {' x '.join(f'{mm:.3g}' for mm in old)} mm; correct that header"
            )
        shape = edges.astype(int)
        affine = self.affine.copy()
        affine[:3, :3] *= spacing_mm / old
        centre = self.affine[:3] @ np.append((np.array(self.shape) - 1) / 2, 1)
        affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid(tuple(shape), affine)

    def differs(self, other: "Grid", *, tolerance_mm: float = 0.1) -> str | None:
        """Why an array on this grid cannot lie on the other one, in words; None where it can.

        Args:
            tolerance_mm: how far corner voxels may lie apart; headers in float32 and quaternions round by 0.001 mm.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in self.shape))], dtype=np.float64)
        apart_mm = np.linalg.norm(corners @ (self.affine - other.affine)[:3].T, axis=1).max()
        if apart_mm <= tolerance_mm:
            return None
        turned = f", {self.orientation} against {other.orientation}" * (self.orientation != other.orientation)
        return f"corner voxels lie up to {apart_mm:.3g} mm apart (tolerance {tolerance_mm:g} mm{turned})"
