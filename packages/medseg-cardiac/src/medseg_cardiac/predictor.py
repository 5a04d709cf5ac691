"""From the slices of a patient to infarct, motion and strain; the network is loaded once.

Axes: S slices, T frames, H W a plane in its file's order, h w the window that the network sees; D the two components of
a displacement, along array axes in pixels.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_cardiac.cohort import Seen, see, with_phases
from medseg_cardiac.contours import outline, rasterise
from medseg_cardiac.dataset import Patient, Plane
from medseg_cardiac.fields import num_folds
from medseg_cardiac.infarct import Infarct, summarise
from medseg_cardiac.models import MODELS
from medseg_cardiac.orientation import Directions, axes_of, base_first
from medseg_cardiac.planes import read_mask
from medseg_cardiac.segments import aha_segments, cavity_of
from medseg_cardiac.settings import PredictConfig
from medseg_cardiac.strain import Strain, mean_strain
from medseg_cardiac.tracking import carried_points, cycle, systole
from medseg_core.checkpoint import Card, load_model
from medseg_core.device import autocast, choose_device, choose_precision
from medseg_core.errors import MedsegError

KINDS = ("cascade", "motion")
EXAMPLE = '{"grid": {"pixel_mm": 1.4, "size": 256}, "intensity": {"percentiles": [1, 99]}}'
TINY = 1e-6
NO_PLACE = "nobody knows where the patient lies: its axes are those of the picture"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """What the network says of one slice.

    Attributes:
        seen: the slice in its window.
        probs: (h, w) of infarct, which mean nothing outside of the myocardium; None of a motion net.
        flows: (T, D, h, w), ED to each frame; None where it was not asked for.
    """

    seen: Seen
    probs: np.ndarray | None = None
    flows: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """H and W of the plane."""
        return self.seen.cine.frames.shape[1:]

    def infarct(self, threshold: float) -> np.ndarray:
        """(H, W) bool, inside the myocardium as it is drawn; at its rim only pixels of the wall are averaged."""
        assert self.probs is not None
        wall = self.seen.masks["myo"].astype(np.float32)
        whole, inside, share = self.seen.window.home(np.stack([self.probs, self.probs * wall, wall]), self.shape)
        probs = np.where(share > 0, inside / np.maximum(share, TINY), whole)
        return read_mask(self.seen.plane.places["myo"], self.shape) & (probs >= threshold)

    def pool_at(self, t: int) -> np.ndarray:
        """(H, W) bool: the pool that the myocardium encloses at ED, its outline carried to a frame."""
        assert self.flows is not None
        window, moved = self.seen.window, np.zeros(self.shape, bool)
        for line in outline(cavity_of(read_mask(self.seen.plane.places["myo"], self.shape))):
            there = carried_points(window.points(line), self.flows[t])
            moved ^= rasterise(window.points_home(there), self.shape)
        return moved

    def flow_home(self, t: int) -> np.ndarray:
        """(D, H, W) in pixels of the plane, 0 beyond the window."""
        assert self.flows is not None
        return self.seen.window.flow_home(self.flows[t], self.shape)

    def strain(self, pixel_mm: float) -> Strain:
        """Over the myocardium."""
        assert self.flows is not None
        return mean_strain(self.flows, self.seen.masks["myo"], (pixel_mm, pixel_mm))

    @property
    def folds(self) -> int:
        """Cells of the grid that are turned over, in all frames."""
        return 0 if self.flows is None else int(num_folds(torch.from_numpy(self.flows)).sum())


class Predictor:
    """The network of a run, held in memory.

    Args:
        run: a run of `train_segmentation` or `train_motion`, or its weights file.

    Raises:
        MedsegError: no such run, or weights of another network or package.
    """

    def __init__(self, run: Path, *, config: PredictConfig | None = None) -> None:
        self.config = config or PredictConfig()
        self.device = choose_device(self.config.device)
        self.precision = choose_precision(self.config.precision, self.device)
        net, self.card = load_model(run, MODELS)
        _check(self.card, run)
        self.net = net.to(self.device)
        self.finds_infarct = self.card.model == "cascade"
        self.motion = self.net.motion if self.finds_infarct else self.net

    @property
    def pixel_mm(self) -> float:
        """Edge of a pixel of the window."""
        return float(self.card.grid["pixel_mm"])

    def see(self, plane: Plane) -> Seen:
        """A slice as the network sees it."""
        config = self.config
        plane = replace(
            plane,
            ed=plane.ed if config.ed is None else config.ed,
            es=plane.es if config.es is None else config.es,
        )
        how: dict[str, Any] = {"pixel_mm": self.pixel_mm, "size": int(self.card.grid["size"])}
        return see(plane, intensity=self.card.intensity, axes=config.axes, **how)

    def slice(self, plane: Plane, *, track: bool) -> Found:
        """What the network says of a slice; it needs its myocardium.

        Args:
            track: also the displacement of every frame.
        """
        if "myo" not in plane.places:
            raise MedsegError(f"{plane.name} has no myocardium mask; draw it, or leave the slice out")
        seen = self.see(plane)
        probs = None
        if self.finds_infarct:
            ed, es = (torch.from_numpy(seen.frames[t])[None, None].to(self.device) for t in (seen.ed, seen.es))
            flow = self._systole(seen)
            with torch.no_grad(), autocast(self.device, self.precision):
                probs = self.net(ed, es, flow)[0, 0].float().sigmoid().cpu().numpy()
        flows = self._cycle(seen) if track else None
        return Found(seen, probs, flows)

    def _systole(self, seen: Seen) -> torch.Tensor | None:
        """What the U-Net sees, refined as for its training, whatever `--refine` says; None where it sees none."""
        if self.net.sees == "ed":
            return None
        how = {"precision": self.precision, "refine": self.net.refine, "myo": seen.masks["myo"]}
        flow = systole(self.motion, seen.frames, ed=seen.ed, es=seen.es, **how)
        return torch.from_numpy(flow)[None].to(self.device)

    def _cycle(self, seen: Seen) -> np.ndarray:
        how = {"precision": self.precision, "refine": self.config.refine, "myo": seen.masks["myo"]}
        return cycle(self.motion, seen.frames, seen.ed, **how)

    def patient(self, patient: Patient, *, track: bool) -> tuple[list[Found], list[str]]:
        """All slices that can be done, and a line for each of the others.

        Raises:
            MedsegError: none can be done.
        """
        wrong = [str(note) for note in patient.notes if note.severity == "error"]
        for note in patient.notes:
            if note.severity != "note":
                log.warning("%s: %s", patient.id, note)
        found, left_out = [], []
        for plane in with_phases(patient.planes, axes=self.config.axes):
            try:
                found.append(self.slice(plane, track=track))
            except MedsegError as error:
                left_out.append(f"{plane.name}: {error}")
                log.warning("left out: %s %s: %s", patient.id, plane.name, error)
        if not found:
            why = [*wrong, *left_out, "it has no cine"][0]
            raise MedsegError(f"no slice of {patient.id} can be used; first {why}")
        return found, left_out

    def directions(self, found: Sequence[Found]) -> Directions:
        """Where septum and anterior wall lie."""
        return axes_of(found[0].seen.cine.affine, septum_deg=self.config.septum_deg)

    def infarct(self, found: Sequence[Found]) -> Infarct:
        """Mass, share and transmurality of a patient's infarct, by segment."""
        walls = np.stack([one.seen.masks["myo"] for one in found])
        scars = np.stack([one.probs >= self.config.threshold for one in found]) & walls
        segments = self.segments(found)
        sizes = {"spacing_mm": (self.pixel_mm, self.pixel_mm), "thickness_mm": found[0].seen.cine.thickness_mm}
        return summarise(scars, walls, segments=segments, **sizes)

    def segments(self, found: Sequence[Found]) -> np.ndarray:
        """(S, h, w) AHA segments of the myocardium."""
        walls = np.stack([one.seen.masks["myo"] for one in found])
        affines = [one.seen.cine.affine for one in (found[0], found[-1])]
        ends = None if any(a is None for a in affines) else tuple(affines)
        apex_first = not base_first(walls.sum((1, 2)), affines=ends)
        return aha_segments(walls, directions=self.directions(found), apex_first=apex_first)


def _check(card: Card, run: Path) -> None:
    if card.package != "medseg-cardiac" or card.model not in KINDS:
        fix = "give a run of `train-segmentation`, or of `train-motion` for motion and strain alone"
        raise MedsegError(f"{run} holds weights of {card.package}, {card.model}; {fix}")
    if card.chosen.get("trained") is False:
        raise MedsegError(f"{run} holds weights as they are before any training; train first, or give another run")
    if not {"pixel_mm", "size"} <= card.grid.keys() or "percentiles" not in card.intensity:
        fix = f"import it again with --card '{EXAMPLE}'"
        raise MedsegError(f"{run} does not say on which pixels it was trained; {fix}")
