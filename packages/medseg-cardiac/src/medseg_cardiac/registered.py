"""LGE and its masks on the grid of the cine, by the registration net and a refinement, or by geometry alone.

Axes: H W the plane of the cine, h w the window.
"""

from pathlib import Path

import numpy as np

from medseg_cardiac.alignment import aligned
from medseg_cardiac.cohort import see, see_lge
from medseg_cardiac.dataset import Plane
from medseg_cardiac.train import load_of
from medseg_cardiac.validation import warped_mask
from medseg_core.checkpoint import read_card
from medseg_core.errors import MedsegError


class Registered:
    """Brings LGE to the cine.

    Args:
        run: of `train_registration`; None moves nothing but what the headers say, on pixels of 1.4 mm.
        axes: of the cines, as for `read_cine`.
    """

    def __init__(self, run: Path | None, *, axes: str = "auto") -> None:
        self.axes = axes
        self.net = None if run is None else load_of(run, "registration")
        card = None if run is None else read_card(run)
        self.grid = {"pixel_mm": 1.4, "size": 256} if card is None else dict(card.grid)
        self.intensity = {"percentiles": (1.0, 99.0)} if card is None else card.intensity

    def infarct(self, plane: Plane) -> np.ndarray:
        """(H, W) bool, the infarct drawn on LGE."""
        return self._mask(plane, "lge_mi", moved=True)

    def wall(self, plane: Plane, *, moved: bool) -> np.ndarray:
        """(H, W) bool, the myocardium drawn on LGE; unmoved where geometry puts it."""
        return self._mask(plane, "lge_myo", moved=moved)

    def _mask(self, plane: Plane, role: str, *, moved: bool) -> np.ndarray:
        if role not in plane.places or "lge" not in plane.places:
            raise MedsegError(f"{plane.case} {plane.name} has no {role}; `medseg cardiac check` says what is there")
        seen = see(
            plane,
            intensity=self.intensity,
            pixel_mm=float(self.grid["pixel_mm"]),
            size=int(self.grid["size"]),
            axes=self.axes,
        )
        lge = see_lge(seen, intensity=self.intensity)
        mask = lge[role]
        if moved and self.net is not None:
            mask = warped_mask(mask, aligned(self.net, lge["lge"], seen.frames[seen.ed]))
        return seen.window.home(mask.astype(np.float32), seen.cine.frames.shape[1:]) >= 0.5
