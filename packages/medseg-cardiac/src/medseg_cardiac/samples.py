"""What the three networks are trained on; see `medseg_core.draw.Samples`.

Axes: h w a square about the heart; D the two components of a displacement, along array axes in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, map_coordinates

from medseg_cardiac.cohort import Slice
from medseg_cardiac.synthetic import made_motion
from medseg_core import augment
from medseg_core.draw import Batch, Draw

FAR = 32767  # float16 holds distances up to here


@dataclass(frozen=True)
class View:
    """A random square of a window: what stands at u in it stands at matrix @ (u - middle) + at in the window."""

    matrix: np.ndarray
    at: np.ndarray
    size: int
    shading: augment.Plan

    def take(self, planes: Sequence[np.ndarray], *, flow: np.ndarray | None = None) -> list[np.ndarray]:
        """(h, w) float32 of each plane, looked up at u + flow(u)."""
        u = np.indices((self.size, self.size), dtype=np.float32) - (self.size - 1) / 2
        if flow is not None:
            u = u + flow
        places = np.einsum("ij,jhw->ihw", self.matrix, u) + self.at[:, None, None]
        return [map_coordinates(plane.astype(np.float32), places, order=1, mode="nearest") for plane in planes]

    def shade(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(C, h, w): grey values changed, the same for all but for a little and the noise."""
        image = np.stack(pictures).astype(np.float32)
        flat = replace(self.shading, matrix=np.eye(2), shift=np.zeros(2), bend=None)
        return augment.apply(flat, image, np.zeros(image.shape[1:], np.uint8), mirror={})[0]


def view_of(window: int, size: int, how: augment.Recipe, rng: np.random.Generator, *, channels: int = 2) -> View:
    """Draws a square near the middle of a window; `bend` of the recipe is not used, as motion is bent by itself."""
    plan = augment.plan(how, (channels, size, size), rng)
    shared = {name: np.repeat(getattr(plan, name)[:1], channels) for name in ("contrast", "brightness", "gamma")}
    middle = (window - 1) / 2
    return View(plan.matrix, middle - plan.matrix @ plan.shift, size, replace(plan, **shared))


class MotionPairs:
    """Two frames of a slice: `moving` and `fixed` (1, h, w).

    Some pairs are one frame seen twice, the fixed one through a displacement that is made: its `flow` (D, h, w) is
    `known`. Where the pair is ED and ES and both pools are drawn, `near_moving` and `near_fixed` (1, h, w) are the
    signed distances to their outlines in pixels, positive inside, and `drawn` is 1.

    Args:
        frames: "ed" keeps the frame at ED fixed, "any" takes any two.
        synthetic: share of pairs with made motion.
        drawn: share of pairs that are ED and ES, where both pools are drawn.
        per_slice: pairs of a slice in an epoch.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        *,
        crop: int,
        how: augment.Recipe,
        frames: str = "any",
        synthetic: float = 0.0,
        drawn: float = 0.0,
        per_slice: int = 1,
        identity: str = "",
    ) -> None:
        self.slices, self.crop, self.how, self.frames = list(slices), crop, how, frames
        self.synthetic, self.drawn, self.per_slice, self.identity = synthetic, drawn, per_slice, identity
        self.distances = lru_cache(maxsize=4096)(self._distances)

    def __len__(self) -> int:
        return len(self.slices) * self.per_slice

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "distances"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.distances = lru_cache(maxsize=4096)(self._distances)

    def __getitem__(self, draw: Draw) -> Batch:
        number = draw.index // self.per_slice
        one, rng = self.slices[number], draw.numpy()
        view = view_of(one.frames.shape[-1], self.crop, self.how, rng)
        kind = rng.random()
        is_made = kind < self.synthetic
        is_drawn = not is_made and kind < self.synthetic + self.drawn and one.has("lv_ed", "lv_es")
        moving, fixed = self._frames(one, rng, is_made=is_made, is_drawn=is_drawn)
        flow = made_motion(self.crop, rng) if is_made else np.zeros((2, self.crop, self.crop), np.float32)
        near = self.distances(number) if is_drawn else np.zeros((2, *one.frames.shape[1:]), np.float16)
        (m,), (f,) = view.take([one.frames[moving]]), view.take([one.frames[fixed]], flow=flow if is_made else None)
        pictures = view.shade([m, f])
        scale = np.sqrt(abs(np.linalg.det(view.matrix)))
        near_fixed, near_moving = (plane / scale for plane in view.take(near))
        return {
            "moving": torch.from_numpy(pictures[:1]),
            "fixed": torch.from_numpy(pictures[1:]),
            "flow": torch.from_numpy(flow),
            "known": torch.tensor(float(is_made)),
            "near_moving": torch.from_numpy(near_moving[None].astype(np.float32)),
            "near_fixed": torch.from_numpy(near_fixed[None].astype(np.float32)),
            "drawn": torch.tensor(float(is_drawn)),
        }

    def _frames(self, one: Slice, rng: np.random.Generator, *, is_made: bool, is_drawn: bool) -> tuple[int, int]:
        """Which frame moves and which stays."""
        ed, es, num = one.about["ed"], one.about["es"], len(one.frames)
        any_two = rng.integers(num), rng.integers(num)
        if is_made:
            return int(any_two[0]), int(any_two[0])
        if is_drawn:
            return es, ed
        return int(any_two[0]), (ed if self.frames == "ed" else int(any_two[1]))

    def _distances(self, number: int) -> np.ndarray:
        """(2, h, w) float16 of ED and ES."""
        one = self.slices[number]
        return np.stack([signed_distance(one.mask(role)) for role in ("lv_ed", "lv_es")]).astype(np.float16)


class RegistrationPairs:
    """LGE as `moving` and the cine's frame at ED as `fixed`, (1, h, w) each."""

    def __init__(self, slices: Sequence[Slice], *, crop: int, how: augment.Recipe, identity: str = "") -> None:
        self.slices, self.crop, self.how, self.identity = list(slices), crop, how, identity

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> Batch:
        one, rng = self.slices[draw.index], draw.numpy()
        view = view_of(one.frames.shape[-1], self.crop, self.how, rng)
        moving, fixed = (view.shade([picture])[:1] for picture in view.take([one.lge, one.frames[one.about["ed"]]]))
        return {"moving": torch.from_numpy(moving), "fixed": torch.from_numpy(fixed)}


class InfarctSlices:
    """The frames at ED and ES, (1, h, w) each, the infarct (1, h, w) where the cine has it, and the myocardium.

    Args:
        infarcts: (h, w) bool of each slice, in the window of its cine.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        infarcts: Sequence[np.ndarray],
        *,
        crop: int,
        how: augment.Recipe,
        identity: str = "",
    ) -> None:
        self.slices, self.infarcts = list(slices), list(infarcts)
        self.crop, self.how, self.identity = crop, how, identity

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> Batch:
        one, rng = self.slices[draw.index], draw.numpy()
        view = view_of(one.frames.shape[-1], self.crop, self.how, rng)
        ed, es = (one.frames[one.about[phase]] for phase in ("ed", "es"))
        taken = view.take([ed, es, self.infarcts[draw.index], one.mask("myo")])
        pictures = view.shade(taken[:2])
        infarct, myo = (torch.from_numpy((mask >= 0.5).astype(np.uint8))[None] for mask in taken[2:])
        return {
            "moving": torch.from_numpy(pictures[1:]),
            "fixed": torch.from_numpy(pictures[:1]),
            "infarct": infarct & myo,
            "myo": myo,
        }


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """(h, w) pixels to the outline, half-way between pixels, positive inside."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.clip(np.where(mask, inside - 0.5, 0.5 - outside), -FAR, FAR)
