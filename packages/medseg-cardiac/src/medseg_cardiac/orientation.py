"""Where the septum and the anterior wall lie in a short-axis plane, and how to turn a plane so that pictures agree.

A plane is (H, W); a direction is a step along its two array axes, in mm. Patient axes are RAS+: right to left is -x,
back to front +y, feet to head +z.
"""

import math
from dataclasses import dataclass

import numpy as np

from medseg_core.errors import MedsegError

# from the left to the right ventricle; measured on the three Sunnybrook patients: (0.70, 0.69, 0.02) within 12 degrees
SEPTUM_RAS = np.array([1.0, 1.0, 0.0]) / math.sqrt(2)
ANTERIOR_RAS = np.array([0.0, 0.5, 1.0]) / math.sqrt(1.25)
APEX_RAS = np.array([-0.62, 0.66, -0.42]) / math.sqrt(0.62**2 + 0.66**2 + 0.42**2)  # base to apex
FURTHEST_DEG = 40.0  # an axial, a coronal and a sagittal plane lie 49 degrees and more from a usual short axis
PICTURE = ((0.0, -1.0), (-1.0, 0.0))  # septum left, anterior up: h runs down and w to the right


@dataclass(frozen=True, eq=False)
class Directions:
    """Two unit vectors (along H, along W), at right angles.

    Attributes:
        septum: (2,) from the centre of the left ventricle to the septum, where the right ventricle is.
        anterior: (2,) from the centre to the anterior wall.
        said: one line: where the septum is in the array as it lies, and how that is known.
    """

    septum: np.ndarray
    anterior: np.ndarray
    said: str


def axes_of(affine: np.ndarray | None, *, septum_deg: float | None = None) -> Directions:
    """The two directions of a short-axis plane, from its place in the patient or from the picture's convention.

    The right ventricle lies to the right and in front of the left one; that direction, laid into the plane, points to
    the septum. Anterior is at right angles to it, on the side of the head and the front. A plane further than 40
    degrees from the short axis of a heart that lies as most do (an affine without a patient among them) gets the
    convention: septum left, anterior up.

    Args:
        affine: (4, 4), index (h, w, 0) -> RAS+ mm; None where the file does not know the patient.
        septum_deg: where the septum is instead: degrees in the array as a picture (h down, w right), 0 to the right, 90
            up, 180 left. The affine, or the convention without one, then only tells on which side anterior is.

    Raises:
        MedsegError: an affine of another shape, or an angle that is no number.
    """
    septum, anterior, how = _picture("no affine") if affine is None else _from_affine(affine)
    if septum_deg is not None:
        if not math.isfinite(septum_deg):
            raise MedsegError(f"the septum lies at {septum_deg} degrees; give a number: 0 right, 90 up, 180 left")
        turn = math.radians(septum_deg)
        side = np.sign(_cross(septum, anterior))
        septum, how = np.array([-math.sin(turn), math.cos(turn)]), "as given"
        anterior = side * np.array([-septum[1], septum[0]])
    return Directions(septum=septum, anterior=anterior, said=f"septum {_place(septum)}, {how}")


def _from_affine(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    affine = np.asarray(affine, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise MedsegError(f"the affine of a plane is a finite 4 x 4 matrix, not {affine.shape}; read it from the file")
    lengths = np.linalg.norm(affine[:3, :2], axis=0)
    if not (lengths > 0).all():
        return _picture("the affine has no size")
    along = affine[:3, :2] / lengths  # (3, 2): h and w in the patient
    normal = np.cross(along[:, 0], along[:, 1])
    off_deg = math.degrees(math.acos(min(1.0, abs(normal @ APEX_RAS))))
    if off_deg > FURTHEST_DEG:
        return _picture(f"the affine's plane lies {off_deg:.0f} degrees from a usual short axis")
    septum = SEPTUM_RAS @ along
    septum /= np.linalg.norm(septum)
    across = np.array([-septum[1], septum[0]])
    anterior = across if ANTERIOR_RAS @ along @ across > 0 else -across
    return septum, anterior, "from the affine: to the right and the front of the patient"


def _picture(why: str) -> tuple[np.ndarray, np.ndarray, str]:
    septum, anterior = np.array(PICTURE)
    return septum, anterior, f"anterior up, by convention ({why})"


def _place(direction: np.ndarray) -> str:
    """A direction in words: the side of the picture and the angle."""
    deg = math.degrees(math.atan2(-direction[0], direction[1]))
    side = ("right", "up", "left", "down")[round(deg / 90) % 4]
    return f"{side} in the array ({round(deg) % 360} degrees)"


def _cross(one: np.ndarray, other: np.ndarray) -> float:
    return float(one[0] * other[1] - one[1] * other[0])


def base_first(
    areas: np.ndarray, *, affines: tuple[np.ndarray, np.ndarray] | None = None, given: bool | None = None
) -> bool:
    """Whether the first slice of a stack is the basal one.

    Args:
        areas: (S,) outlined area of each slice, cavity included where it is known; 0 where nothing is outlined.
        affines: those of the first and the last slice: the apex lies to the left, in front and below. Without them,
            or where they are at one place or across the axis, the end with the smaller area is the apex.
        given: what somebody knows; taken as it is.

    Returns:
        True also where nothing tells: fewer than two outlined slices, or two ends alike.
    """
    if given is not None:
        return given
    if affines is not None:
        step = np.asarray(affines[1], float)[:3, 3] - np.asarray(affines[0], float)[:3, 3]
        length = float(np.linalg.norm(step))
        if length > 0 and abs(step @ APEX_RAS) > math.cos(math.radians(FURTHEST_DEG)) * length:
            return bool(step @ APEX_RAS > 0)
    outlined = np.asarray(areas, float)
    outlined = outlined[outlined > 0]
    return len(outlined) < 2 or bool(outlined[0] >= outlined[-1])


@dataclass(frozen=True, eq=False)
class Turn:
    """One of the eight ways to lay a plane down: quarter turns and a transpose, so that no pixel is mixed.

    Attributes:
        matrix: (2, 2) of -1, 0 and 1: an array step -> a picture step (down, right).
    """

    matrix: np.ndarray

    def plane(self, array: np.ndarray) -> np.ndarray:
        """(..., H, W) -> (..., H', W')."""
        turned = np.swapaxes(array, -1, -2) if self.swaps else array
        return np.flip(turned, [axis for axis in (-2, -1) if self.matrix[axis].sum() < 0])

    def points(self, points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """(..., 2) points (h, w) of a plane of this shape -> where they are in the turned plane."""
        turned = np.asarray(points, float) @ self.matrix.T
        size = shape[::-1] if self.swaps else shape
        return turned + [size[i] - 1 if self.matrix[i].sum() < 0 else 0 for i in range(2)]

    def spacing(self, spacing_mm: tuple[float, float]) -> tuple[float, float]:
        """(along H, along W) -> (down, right)."""
        return (spacing_mm[1], spacing_mm[0]) if self.swaps else spacing_mm

    @property
    def swaps(self) -> bool:
        """Whether rows become columns."""
        return bool(self.matrix[0, 0] == 0)


def upright(directions: Directions | None) -> Turn:
    """The turn that brings the septum to the left and anterior up, as nearly as quarter turns can; None: as it lies."""
    ways = [
        np.array(rows) for a in (1, -1) for b in (1, -1) for rows in ([[a, 0], [0, b]], [[0, a], [b, 0]])
    ]  # the first is the plane as it lies, which wins a tie
    if directions is None:
        return Turn(ways[0])
    left, up = np.array(PICTURE)
    return Turn(max(ways, key=lambda way: round(left @ way @ directions.septum + up @ way @ directions.anterior, 9)))
