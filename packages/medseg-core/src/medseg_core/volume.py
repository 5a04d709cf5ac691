"""What a file holds, with its place: volumes, series, pictures; and a volume on another grid."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medseg_core.errors import MedsegError, meant
from medseg_core.grid import Grid
from medseg_core.sampling import HOW, sample


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie. Checked once, here.

    Args:
        voxels: (X, Y, Z) numbers in the file's own axis and memory order.
        affine: (4, 4) index -> RAS+ mm.

    Raises:
        MedsegError: not 3D, empty, not numbers, or an affine that is not finite or singular.
    """

    voxels: np.ndarray
    affine: np.ndarray

    def __post_init__(self) -> None:
        voxels = np.asarray(self.voxels)
        if voxels.ndim != 3:
            raise MedsegError(f"a volume has three axes, got shape {voxels.shape}; give a plane an axis of length 1")
        _check_numbers(voxels)
        object.__setattr__(self, "voxels", voxels)
        object.__setattr__(self, "affine", self.grid.affine)

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine."""
        return Grid(self.voxels.shape, self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along X, Y, Z, in mm."""
        return self.grid.spacing_mm

    @property
    def orientation(self) -> str:
        """Where the index grows to: "RAS" grows to right, anterior, superior."""
        return self.grid.orientation

    def like(self, voxels: np.ndarray) -> "Volume":
        """Other voxels in this place: a mask keeps its image's affine.

        Raises:
            MedsegError: another shape.
        """
        if np.shape(voxels) != self.grid.shape:
            raise MedsegError(f"voxels of shape {np.shape(voxels)} do not lie on a grid of shape {self.grid.shape}")
        return Volume(voxels, self.affine)


@dataclass(frozen=True, eq=False)
class Series:
    """Frames over time, all in one place.

    Args:
        frames: (T, X, Y, Z).
        affine: (4, 4) index (x, y, z) -> RAS+ mm.
        times_s: (T,) seconds, or None where the file does not say.
    """

    frames: np.ndarray
    affine: np.ndarray
    times_s: np.ndarray | None = None

    def __post_init__(self) -> None:
        if np.ndim(self.frames) != 4:
            raise MedsegError(f"a series has the axes T X Y Z, got shape {np.shape(self.frames)}")
        _check_numbers(self.frames)
        if self.times_s is not None and np.shape(self.times_s) != self.frames.shape[:1]:
            raise MedsegError(f"{np.size(self.times_s)} times for {self.frames.shape[0]} frames")
        object.__setattr__(self, "affine", Grid(self.frames.shape[1:], self.affine).affine)

    def frame(self, t: int) -> Volume:
        """The volume of one frame, without a copy."""
        return Volume(self.frames[t], self.affine)


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels (H, W) or (H, W, C), and the edge of a pixel in nanometres where it is known."""

    pixels: np.ndarray
    pixel_nm: float | None = None

    def __post_init__(self) -> None:
        if np.ndim(self.pixels) not in (2, 3):
            raise MedsegError(f"a picture has the axes H W or H W C, got shape {np.shape(self.pixels)}")
        _check_numbers(self.pixels)


def resample(
    volume: Volume, grid: Grid, *, how: str = "linear", outside: float | None = None, antialias: bool = False
) -> Volume:
    """A volume on another grid; the way home is the same call with the first grid.

    Where the grids coincide (axes permuted, flipped, cropped or padded) voxels are copied, bit for bit. Within half
    a voxel beyond the outermost centres, which is still in the field of view, the edge's value holds.

    Args:
        how: "linear"; "cubic" (interpolating B-spline, mirrored at the edges; it overshoots at sharp ones); or
            "label": the id with the largest linear weight, which is the arg-max of the linearly resampled one-hot
            maps, ties going to the smallest id.
        outside: value beyond the field of view; by default 0 for labels and the image's minimum for images.
        antialias: smooth an image first along each axis whose step, f input voxels, is more than one, by a Gaussian of
            (f - 1) / 2 voxels, mirrored at the edges (the rule of `skimage.transform.resize`). Worth it where noise
            and edges finer than the new voxels would fold into patterns, from a step of about two; it softens what
            the new grid could still have shown, so a model wants the choice it was trained with.

    Returns:
        A new array in the memory order of the input. "label" keeps the dtype; "linear" and "cubic" keep floats and
        make float32 of integers, whether or not a value had to be computed.

    Raises:
        MedsegError: another word for `how`, or `antialias` for labels.
    """
    if how not in HOW:
        raise MedsegError(f"how must be one of {', '.join(HOW)}, got {how!r}{meant(how, HOW)}")
    if antialias and how == "label":
        raise MedsegError("antialias=True smooths images, and how='label' takes a vote of ids; leave antialias out")
    matrix = np.linalg.inv(volume.affine) @ grid.affine
    voxels = sample(volume.voxels, matrix, shape=grid.shape, how=how, outside=outside, antialias=antialias)
    return Volume(voxels, grid.affine)


def _check_numbers(values: np.ndarray) -> None:
    if values.dtype.kind not in "biuf" or values.size == 0:
        raise MedsegError(f"expected an array of real numbers, got shape {values.shape} of {values.dtype}")
