"""Every measure of every label of a pair in one call, from arrays or from files."""

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.errors import MedsegError, meant
from medseg_core.labelmaps import label_map
from medseg_core.lesions import lesion_metrics
from medseg_core.metrics import count, scores, status
from medseg_core.skeleton import cldice
from medseg_core.surface import surface_metrics
from medseg_core.volume import Picture, Volume

KINDS = ("overlap", "surface", "centreline", "lesions")


def score(
    mask: np.ndarray,
    label: np.ndarray,
    *,
    spacing: Sequence[float],
    ids: Iterable[int] | None = None,
    measures: Collection[str] = ("overlap", "surface"),
    tolerance: float | Sequence[float] = 3.0,
    percentile: float = 95.0,
    convention: str = "voxel",
    empty: str = "undefined",
    connectivity: int | None = None,
    min_iou: float = 0.0,
) -> dict[str, np.ndarray]:
    """Measures of each label, as columns: `pandas.DataFrame(score(...))` is a table.

    Args:
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, whole numbers from 0 to 65535.
        spacing: voxel edges, one per axis of the array; distances and volumes come in its unit.
        ids: what to score, in this order; None is every id but 0 on either side.
        measures: kinds of them, or one. "overlap": see `metrics.scores`, and the volume (in 2D area) of both sides.
            "surface": `hd`, `hd95`, `assd`, `nsd`, see `surface`. "centreline": clDice for tubes, see `skeleton`.
            "lesions": connected parts found, missed and invented, see `lesions`.
        tolerance: of `nsd`, in the unit of the spacing; one for all, or one for each of `ids`.
        percentile: of the Hausdorff distance; with 90 the column is called `hd90`.
        convention: where a surface lies, "voxel" or "surface".
        empty: the distances of a structure on one side only, "undefined" or "worst"; see the table in `metrics`.
        connectivity, min_iou: of lesions.

    Returns:
        `id`, `status` (both, missed, invented, absent) and the measures, each (L,).

    Raises:
        MedsegError: no pair of label maps on one grid, or a setting that does not exist.
    """
    measures = (measures,) if isinstance(measures, str) else measures
    check_kinds(measures)
    counts = count(mask, label, ids=ids)
    num_axes = np.ndim(label)
    if np.shape(spacing) != (num_axes,) or not all(0 < edge < math.inf for edge in spacing):
        raise MedsegError(f"spacing {spacing} must be {num_axes} positive lengths, one per axis of the array")
    how: dict[str, Any] = {"ids": counts.ids, "spacing": spacing}
    columns = {"id": counts.ids, "status": status(counts)}
    if "overlap" in measures:
        size = math.prod(map(float, spacing))
        columns |= scores(counts) | {"volume_ref": counts.label * size, "volume_pred": counts.mask * size}
    if "surface" in measures:
        of_surface = {"tolerance_mm": tolerance, "percentile": percentile, "convention": convention, "empty": empty}
        found = surface_metrics(mask, label, **how, **of_surface)
        columns |= {f"hd{percentile:g}" if name == "hd95" else name: values for name, values in found.items()}
    if "centreline" in measures:
        columns |= cldice(mask, label, ids=counts.ids)
    if "lesions" in measures:
        columns |= lesion_metrics(mask, label, **how, connectivity=connectivity, min_iou=min_iou)
    return columns


def check_kinds(measures: Iterable[str]) -> None:
    """Refuses a kind of measures that does not exist, with the nearest that does."""
    for kind in measures:
        if kind not in KINDS:
            raise MedsegError(f"there are no measures {kind!r}{meant(kind, KINDS)}; kinds are {', '.join(KINDS)}")


def score_files(mask: Path, label: Path, **how: Any) -> dict[str, np.ndarray]:
    """As `score`, of two files of ids: volumes in mm, pictures in nm where their size is known and in pixels elsewhere.

    Args:
        how: as for `score`, but the spacing, which the reference's file knows.

    Raises:
        MedsegError: a folder, a file that cannot be read or is no label map, or two that do not lie on one grid or
            that the `labels.json` beside them number differently; it is named.
    """
    for path in map(Path, (mask, label)):
        if path.is_dir():
            fix = "read it by a class list, label_map(path).read({'liver': 1}), and give the arrays to score"
            raise MedsegError(f"{path} is a folder, and one file of ids is meant; {fix}")
    sides = label_map(mask), label_map(label)
    if all(side.ids for side in sides) and sides[0].ids != sides[1].ids:
        fix = "score them by name: medseg evaluate, or evaluate_folders"
        raise MedsegError(f"{mask} and {label} number their structures differently, as labels.json says; {fix}")
    mine, true = (side.read() for side in sides)
    reason = differs(mine, true)
    if reason:
        raise MedsegError(
            f"{mask} does not lie on the grid of {label}: {reason}; predict on the image that was labelled"
        )
    return score(*(array_of(side) for side in (mine, true)), spacing=spacing_of(true)[0], **how)


def array_of(held: Volume | Picture) -> np.ndarray:
    """(X, Y, Z) voxels or (H, W) pixels."""
    return held.voxels if isinstance(held, Volume) else held.pixels


def spacing_of(held: Volume | Picture) -> tuple[tuple[float, ...], str]:
    """Edges of a voxel in mm, or of a pixel in nm where it is known; and the unit, "px" where it is not."""
    if isinstance(held, Volume):
        return held.spacing_mm, "mm"
    return (held.pixel_nm or 1.0,) * 2, "nm" if held.pixel_nm else "px"


def differs(mine: Volume | Picture, true: Volume | Picture) -> str | None:
    """Why mine does not lie on the true one's grid, in words; None where it does, or where pixels have no size."""
    if isinstance(mine, Volume) and isinstance(true, Volume):
        return mine.grid.differs(true.grid)
    if array_of(mine).shape != array_of(true).shape:
        return f"shape {array_of(mine).shape} against {array_of(true).shape}"
    sizes = [spacing_of(side)[0][0] for side in (mine, true) if spacing_of(side)[1] == "nm"]
    if len(sizes) == 2 and abs(sizes[0] - sizes[1]) > 0.01 * sizes[1]:
        return f"pixels of {sizes[0]:g} nm against {sizes[1]:g} nm"
    return None
