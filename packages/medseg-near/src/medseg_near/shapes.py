"""One structure of one scan, cropped, with the way back to its file; and the cache of them that `prepare` leaves.

CACHE/cases.json                         the shapes in their order: the row of each is that of its latent
CACHE/shapes/<id>/{label,image}.npy      (X, Y, Z) bool, and float16 0 to 1 where there is a CT
CACHE/shapes/<id>/about.json             where the crop lies

Axes: X Y Z voxels in the file's own order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case, read_cases, write_cases
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.store import Arrays, write_arrays

CASES = "cases.json"
FOLDER = "shapes"
ARRAYS = "arrays"  # the role of a shape's folder in the list


@dataclass(frozen=True)
class Stored:
    """An array of a cache that is opened when it is asked for, and travels to workers as a path."""

    arrays: Arrays
    name: str


class _Array:
    """A field that holds an array or a `Stored`, and gives the array.

    The maps of a cohort are not held open together: each takes a file descriptor.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, shape: Any, owner: type) -> Any:
        if shape is None:
            raise AttributeError(self.name)  # a dataclass asks so for a default, and there is none
        held = shape.__dict__[self.name]
        return held.arrays[held.name] if isinstance(held, Stored) else held

    def __set__(self, shape: Any, value: Any) -> None:
        shape.__dict__[self.name] = value


@dataclass(frozen=True, eq=False)
class Shape:
    """One structure of one scan, cropped.

    Args:
        id: "<case>", or "<case>-<structure>" where several structures make the cohort.
        label: (X, Y, Z) bool in the file's own order and spacing. Of a cache it is a read-only memory map.
        grid: of the crop.
        image: (X, Y, Z) float16, 0 to 1, the CT on the same crop; None where there is none.
        whole: of the file that the crop comes from.
        start: first voxel of the crop in that file.
    """

    id: str
    label: np.ndarray = _Array()  # type: ignore[assignment]
    grid: Grid
    image: np.ndarray | None = _Array()  # type: ignore[assignment]
    whole: Grid
    start: tuple[int, int, int]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along X, Y, Z, in mm."""
        return self.grid.spacing_mm

    @property
    def centre_mm(self) -> np.ndarray:
        """(3,) RAS+ mm: the middle of the structure's bounding box, which has the axes of the array."""
        return self._corners_mm.mean(0)

    @property
    def half_mm(self) -> float:
        """Half of that box's largest extent along R, A, S, to the outer faces of its voxels.

        The structure lies in the cube of this half edge about `centre_mm`, also where the grid is oblique.
        """
        return float(np.ptp(self._corners_mm, axis=0).max() / 2)

    @cached_property
    def _corners_mm(self) -> np.ndarray:
        """(8, 3) RAS+ mm of the outer corners of the bounding box."""
        box = box_of(self.label)
        if box is None:
            raise MedsegError(f"{self.id} is an empty mask, which has no middle and no size; leave it out")
        sides = np.array([(side.start - 0.5, side.stop - 0.5) for side in box])
        corners = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(8, 3)
        return corners @ self.grid.affine[:3, :3].T + self.grid.affine[:3, 3]

    def home(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the crop on the whole grid of its file: (X, Y, Z) in its dtype, 0 outside of the crop.

        Raises:
            MedsegError: a mask of another shape.
        """
        if mask.shape != self.grid.shape:
            raise MedsegError(f"{self.id}: a mask of shape {mask.shape} does not lie on its crop of {self.grid.shape}")
        whole = np.zeros(self.whole.shape, mask.dtype, order="F")
        whole[tuple(slice(s, s + n) for s, n in zip(self.start, mask.shape, strict=True))] = mask
        return whole


def box_of(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds all of a (X, Y, Z) mask; None of an empty one."""
    sides = []
    for axis in range(3):
        on = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not on.size:
            return None
        sides.append(slice(int(on[0]), int(on[-1]) + 1))
    return tuple(sides)  # type: ignore[return-value]


def part_of(whole: Grid, box: Sequence[slice]) -> Grid:
    """The grid of a box of voxels of another one."""
    affine = whole.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    return Grid(tuple(side.stop - side.start for side in box), affine)  # type: ignore[arg-type]


def write_shape(shape: Shape, cache: Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Writes its arrays into a cache, which `write_list` then lists; an older one of the same id is replaced.

    Args:
        about: what else is known of it; what JSON holds.
    """
    arrays = {"label": shape.label} | ({} if shape.image is None else {"image": shape.image})
    place = {"affine": shape.whole.affine.tolist(), "whole": list(shape.whole.shape), "start": list(shape.start)}
    write_arrays(Path(cache) / FOLDER / shape.id, arrays, {**place, "shape": list(shape.grid.shape), **(about or {})})


def write_list(cache: Path, cases: Sequence[Case]) -> None:
    """Lists shapes that lie in a cache, in this order; the file `arrays` of each case becomes its folder.

    Cases keep their id, group, split and notes.
    """
    here = [
        Case(case.id, {ARRAYS: Path(cache) / FOLDER / case.id}, case.group, case.split, case.notes) for case in cases
    ]
    write_cases(Path(cache) / CASES, here)


def read_shapes(cache: Path) -> list[Shape]:
    """The shapes of a cache in the order of its list. Their arrays are opened when they are asked for.

    Raises:
        MedsegError: no cache of `prepare`, or a shape whose folder is gone or damaged; it is named.
    """
    if not (Path(cache) / CASES).is_file():
        raise MedsegError(f"{cache} is no cache of prepared shapes; make one: medseg near prepare LABELS --out {cache}")
    return [_read(case) for case in read_cases(Path(cache) / CASES)]


def label_of(cache: Path) -> str:
    """The structures of a cache, with commas between them, as `--label` takes them."""
    return ",".join(dict.fromkeys(str(case.notes.get("structure", "")) for case in read_cases(Path(cache) / CASES)))


def _read(case: Case) -> Shape:
    if ARRAYS not in case.files:
        raise MedsegError(f"the list of cases has no arrays for {case.id}; is it one of `medseg near prepare`?")
    arrays = Arrays(case.files[ARRAYS])
    about = arrays.about
    try:
        whole = Grid(tuple(about["whole"]), np.array(about["affine"]))
        box = [slice(s, s + n) for s, n in zip(about["start"], about["shape"], strict=True)]
        grid, start = part_of(whole, box), tuple(about["start"])
    except (KeyError, TypeError, ValueError):
        raise MedsegError(f"{arrays.folder} does not say where its crop lies; prepare it again") from None
    image = Stored(arrays, "image") if "image" in arrays.names else None
    return Shape(case.id, Stored(arrays, "label"), grid, image, whole, start)  # type: ignore[arg-type]
