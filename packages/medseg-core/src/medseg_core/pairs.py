"""One case of an evaluation: what was predicted, what is true, and the rows of numbers that come of it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medseg_core.errors import MedsegError
from medseg_core.metrics import checked_pair
from medseg_core.score import score


@dataclass(frozen=True, eq=False)
class Pair:
    """One case: what was predicted and what is true, on one grid.

    Args:
        id: the case's name.
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, 0 is background.
        spacing: length of a voxel along each array axis, in `unit`.
        unit: "mm", "nm" or "px"; the names of distances end in it.
        images: arrays of the same shape (pictures may have a last axis of colours); the first lies under the overlays.
        known: ids that were annotated in this case; None means all. The others are not scored here.
        affine: index -> RAS+ mm, used to turn pictures and surfaces the way people look at them.
    """

    id: str
    mask: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]
    unit: str = "mm"
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    known: Collection[int] | None = None
    affine: np.ndarray | None = None

    def checked(self) -> "Pair":
        """The pair with label maps of one shape, or an error that names the case."""
        try:
            mask, label = checked_pair(self.mask, self.label)
        except MedsegError as error:
            raise MedsegError(f"case {self.id}: {error}") from None
        if len(self.spacing) != label.ndim or not all(0 < edge < math.inf for edge in self.spacing):
            fix = f"must be {label.ndim} positive lengths, one per axis"
            raise MedsegError(f"case {self.id}: spacing {self.spacing} {fix}")
        for name, image in self.images.items():
            if image.shape[: label.ndim] != label.shape or image.ndim > 3:
                raise MedsegError(f"case {self.id}: image {name!r} has shape {image.shape} and the label {label.shape}")
        return replace(self, mask=mask, label=label)

    def with_mask(self, mask: np.ndarray) -> "Pair":
        """The same case with another prediction, checked."""
        return replace(self, mask=mask).checked()


def score_pair(pair: Pair, labels: Mapping[int, str] | None, **how: Any) -> list[dict[str, Any]]:
    """A row per structure: `case, label, name, status`, then measures; an absent structure has no measures.

    Args:
        labels: id -> name; None scores what is there, each by its id as a name.
        how: as for `score.score`; `tolerance` is one for all, in the unit of the pair.

    Raises:
        MedsegError: several tolerances, or what `score.score` refuses.
    """
    tolerance = how.get("tolerance", 3.0)
    if np.ndim(tolerance):
        fix = "a table has one column for NSD; take `score.score` for one for each structure"
        raise MedsegError(f"tolerance {tolerance} must be one number: {fix}")
    ids = labels if labels is not None else pair.known
    if labels is not None and pair.known is not None:
        ids = [i for i in labels if i in pair.known]
    found = score(pair.mask, pair.label, spacing=pair.spacing, ids=ids, **how)
    columns = _named(found, pair, tolerance)
    rows = []
    for n, (i, state) in enumerate(zip(found["id"].tolist(), found["status"].tolist(), strict=True)):
        row = {"case": pair.id, "label": i, "name": labels[i] if labels is not None else str(i), "status": state}
        rows.append(row if state == "absent" else row | {name: float(column[n]) for name, column in columns.items()})
    return rows


def _named(found: Mapping[str, np.ndarray], pair: Pair, tolerance: float) -> dict[str, np.ndarray]:
    """The columns of a table, by names that carry their unit."""
    head, size, tail = _size_of_voxel(pair)
    scale = size / math.prod(map(float, pair.spacing))
    columns = {}
    for name, values in found.items():
        if name in ("volume_ref", "volume_pred"):
            columns[f"{head}_{name[7:]}_{tail}"] = values * scale
        elif name in ("missed_volume", "invented_volume"):
            columns[f"{name[:-7]}_{tail}"] = values * scale
        elif name.startswith(("hd", "assd")):
            columns[f"{name}_{pair.unit}"] = values
        elif name not in ("id", "status", "accuracy"):
            columns[f"nsd_{tolerance:g}{pair.unit}" if name == "nsd" else name] = values
    return columns


def _size_of_voxel(pair: Pair) -> tuple[str, float, str]:
    """What a number of voxels is called, what one is worth, and in which unit."""
    size = math.prod(map(float, pair.spacing))
    if len(pair.spacing) == 2:
        return "area", size, f"{pair.unit}2"
    return ("volume", size / 1000, "ml") if pair.unit == "mm" else ("volume", size, f"{pair.unit}3")
