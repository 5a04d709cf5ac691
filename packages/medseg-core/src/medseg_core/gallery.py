"""What people look at beside the numbers: an overlay of a case, the surfaces of the worst one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from medseg_core import figures, scene
from medseg_core.pairs import Pair


class Gallery:
    """Kept while pairs go by: an overlay of each on disk, the surfaces of the one with the lowest mean Dice so far.

    Without a folder only the names are kept.
    """

    def __init__(self, labels: Mapping[int, str], out: Path | None) -> None:
        self.labels, self.out = labels, out
        self.cases: dict[str, None] = {}
        self.pictures: dict[str, Path] = {}
        self.worst, self.scene, self.lowest = "", None, math.inf

    def looks(self) -> dict[str, Any]:
        """What an `Evaluation` takes of it."""
        return {"pictures": self.pictures, "worst": self.worst, "scene": self.scene}

    def add(self, pair: Pair, rows: Sequence[Mapping[str, Any]]) -> None:
        """Look at a checked pair; `rows` are its numbers."""
        self.cases[pair.id] = None
        if self.out is None:
            return
        place = self.out / "pictures" / f"{len(self.cases):04d}.png"
        self.pictures[pair.id] = draw_overlay(pair, self.labels, place)
        dice = [row["dice"] for row in rows if row["name"] and row["status"] != "absent"]
        if pair.label.ndim == 3 and dice and np.mean(dice) < self.lowest:
            self.lowest, self.worst = float(np.mean(dice)), pair.id
            self.scene = surfaces_of(pair, self.labels)


def draw_overlay(pair: Pair, labels: Mapping[int, str], path: Path) -> Path:
    """Image | label | mask of the fullest slice, as a picture file; see `figures.overlay`."""
    kind, image = next(iter(pair.images.items()), ("", None))
    drawn = figures.overlay(
        pair.label, pair.mask, _known(pair, labels), image=image, window=figures.CT_WINDOW_HU if kind == "ct" else None,
        spacing=pair.spacing, affine=pair.affine, title=pair.id,
    )  # fmt: skip
    return figures.save(drawn, path)


def surfaces_of(pair: Pair, labels: Mapping[int, str]) -> go.Figure:
    """Prediction and reference in 3D; see `scene.figure`."""
    place = {"spacing": pair.spacing, "affine": pair.affine, "unit": pair.unit}
    return scene.figure(pair.mask, pair.label, _known(pair, labels), **place)


def _known(pair: Pair, labels: Mapping[int, str]) -> dict[int, str]:
    return {i: name for i, name in labels.items() if pair.known is None or i in pair.known}
