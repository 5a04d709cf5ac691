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
from medseg_cardiac.synthetic import made_motion, smooth_field
from medseg_core import augment
from medseg_core.draw import Batch, Draw

FAR = 32767  # float16 holds distances up to here
GAIN = (0.4, 1.3)  # of a whole picture
STRETCH = 0.05  # logarithm of how much longer a heart may become along one axis, and shorter along the other
UNLIKE, OWN = 0.08, 0.05  # how far gamma and shading of two frames of one cine differ
TURNED = 0.2  # share of the drawn pairs that are the other way round
BESIDE = 0.5  # share of them whose frames may be the ones before or after, where the outline is hardly another
AS_WELL, GENTLER = 0.5, 0.6  # share of real pairs that are moved further, and by how much of made motion


@dataclass(frozen=True)
class View:
    """A random square of a window: what stands at u in it stands at matrix @ (u - middle) + at in the window."""

    matrix: np.ndarray
    at: np.ndarray
    size: int
    greys: augment.Plan
    shading: np.ndarray

    def take(self, planes: Sequence[np.ndarray], *, flow: np.ndarray | None = None) -> list[np.ndarray]:
        """(h, w) float32 of each plane, looked up at u + flow(u)."""
        u = np.indices((self.size, self.size), dtype=np.float32) - (self.size - 1) / 2
        if flow is not None:
            u = u + flow
        places = np.einsum("ij,jhw->ihw", self.matrix, u) + self.at[:, None, None]
        return [map_coordinates(plane.astype(np.float32), places, order=1, mode="nearest") for plane in planes]

    def shade(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(C, h, w): grey values changed, the same for all but for a little shading and the noise."""
        image = np.stack(pictures).astype(np.float32) * self.shading[: len(pictures)]
        flat = replace(self.greys, matrix=np.eye(2), shift=np.zeros(2), bend=None)
        return augment.apply(flat, image, np.zeros(image.shape[1:], np.uint8), mirror={})[0]


def view_of(
    window: int, size: int, how: augment.Recipe, rng: np.random.Generator, *, shading: float, channels: int = 2
) -> View:
    """Draws a square near the middle of a window; elastic bends of the recipe are left to `made_motion`.

    Args:
        how: where it scales, hearts are also stretched a little along one axis.
        shading: see `coil_shading`.
    """
    plan = augment.plan(how, (channels, size, size), rng)
    shared = {name: np.repeat(getattr(plan, name)[:1], channels) for name in ("contrast", "brightness", "blur_voxels")}
    gamma = plan.gamma[0] * np.exp(rng.uniform(-UNLIKE, UNLIKE, channels)) if plan.gamma[0] != 1 else plan.gamma
    stretch = np.exp(rng.uniform(-STRETCH, STRETCH)) if how.scale_chance else 1.0
    matrix = plan.matrix @ np.diag([stretch, 1 / stretch])
    at = (window - 1) / 2 - matrix @ plan.shift
    return View(matrix, at, size, replace(plan, **shared, gamma=gamma), coil_shading(size, channels, shading, rng))


def coil_shading(size: int, channels: int, shading: float, rng: np.random.Generator) -> np.ndarray:
    """(C, size, size) float32 factors: a smooth gain that all share, and a little of each one's own.

    Args:
        shading: largest standard deviation of the logarithm of the shared one, beside a gain of 0.4 to 1.3; 0 changes
            nothing.
    """
    if not shading:
        return np.ones((channels, size, size), np.float32)
    smooth = smooth_field(rng.standard_normal((1 + channels, 3, 3)), size)
    shared = np.exp(rng.uniform(np.log(GAIN[0]), np.log(GAIN[1])) + smooth[0] * rng.uniform(0, shading))
    own = (1 + OWN * smooth[1:]) * rng.uniform(1 - 2 * OWN, 1 + 2 * OWN, (channels, 1, 1))
    return (shared * own).astype(np.float32)


class MotionPairs:
    """Two frames of a slice: `moving` and `fixed` (1, h, w), and as they were before their grey values were changed.

    Some pairs are one frame seen twice, the fixed one through a displacement that is made: its `flow` (D, h, w) is
    `known`. Half of the real pairs are moved further by such a one. Where the pair is ED and ES and both pools are
    drawn, `near_moving` and `near_fixed` (1, h, w) are the signed distances to their outlines in pixels, positive
    inside, and `drawn` is 1.

    Args:
        frames: "ed" keeps the frame at ED fixed, "any" takes any two.
        synthetic: share of pairs with made motion.
        drawn: share of pairs that are ED and ES, or the frames beside them, where both pools are drawn; one in five is
            the other way round.
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
        shading: float = 0.0,
        identity: str = "",
    ) -> None:
        self.slices, self.crop, self.how, self.frames = list(slices), crop, how, frames
        self.synthetic, self.drawn, self.per_slice, self.identity = synthetic, drawn, per_slice, identity
        self.shading = shading
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
        view = view_of(one.frames.shape[-1], self.crop, self.how, rng, shading=self.shading)
        kind = rng.random()
        is_made = kind < self.synthetic
        is_drawn = not is_made and kind < self.synthetic + self.drawn and self._has_pools(one)
        moving, fixed, turned = self._frames(one, rng, is_made=is_made, is_drawn=is_drawn)
        made = np.zeros((2, self.crop, self.crop), np.float32)
        if is_made or (self.synthetic and rng.random() < AS_WELL):
            made = made_motion(self.crop, rng) * np.float32(1 if is_made else GENTLER)
        near = self.distances(number) if is_drawn else np.zeros((2, *one.frames.shape[1:]), np.float16)
        near = near[::-1] if turned else near
        m, near_moving = view.take([one.frames[moving], near[1]])
        f, near_fixed = view.take([one.frames[fixed], near[0]], flow=made)
        pictures = view.shade([m, f])
        scale = np.sqrt(abs(np.linalg.det(view.matrix)))
        return {
            "moving": torch.from_numpy(pictures[:1]),
            "fixed": torch.from_numpy(pictures[1:]),
            "moving_plain": torch.from_numpy(m[None]),
            "fixed_plain": torch.from_numpy(f[None]),
            "flow": torch.from_numpy(made),
            "known": torch.tensor(float(is_made)),
            "near_moving": torch.from_numpy(near_moving[None] / np.float32(scale)),
            "near_fixed": torch.from_numpy(near_fixed[None] / np.float32(scale)),
            "drawn": torch.tensor(float(is_drawn)),
        }

    def _frames(self, one: Slice, rng: np.random.Generator, *, is_made: bool, is_drawn: bool) -> tuple[int, int, bool]:
        """Which frame moves, which stays, and whether they are ED and ES the other way round."""
        ed, es, num = one.about["ed"], one.about["es"], len(one.frames)
        any_two = rng.integers(num), rng.integers(num)
        if is_made:
            return int(any_two[0]), int(any_two[0]), False
        if is_drawn:
            if rng.random() < BESIDE:
                ed, es = ((t + int(rng.integers(-1, 2))) % num for t in (ed, es))
            turned = self.frames == "any" and rng.random() < TURNED
            return (ed, es, True) if turned else (es, ed, False)
        return int(any_two[0]), (ed if self.frames == "ed" else int(any_two[1])), False

    @staticmethod
    def _has_pools(one: Slice) -> bool:
        """Both drawn, and neither closed."""
        return one.has("lv_ed", "lv_es") and bool(one.mask("lv_ed").any() and one.mask("lv_es").any())

    def _distances(self, number: int) -> np.ndarray:
        """(2, h, w) float16 of ED and ES."""
        one = self.slices[number]
        return np.stack([signed_distance(one.mask(role)) for role in ("lv_ed", "lv_es")]).astype(np.float16)


class RegistrationPairs:
    """LGE as `moving` and the cine's frame at ED as `fixed`, (1, h, w) each."""

    def __init__(
        self, slices: Sequence[Slice], *, crop: int, how: augment.Recipe, shading: float, identity: str
    ) -> None:
        self.slices, self.crop, self.how = list(slices), crop, how
        self.shading, self.identity = shading, identity

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> Batch:
        one, rng = self.slices[draw.index], draw.numpy()
        view = view_of(one.frames.shape[-1], self.crop, self.how, rng, shading=self.shading)
        pictures = view.shade(view.take([one.lge, one.frames[one.about["ed"]]]))
        return {"moving": torch.from_numpy(pictures[:1]), "fixed": torch.from_numpy(pictures[1:])}


class InfarctSlices:
    """The frames at ED and ES, (1, h, w) each, the displacement from one to the other, infarct and myocardium.

    Args:
        infarcts: (h, w) bool of each slice, in the window of its cine.
        flows: (D, h, w) of each slice, ED to ES, in pixels of the window.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        infarcts: Sequence[np.ndarray],
        flows: Sequence[np.ndarray],
        *,
        crop: int,
        how: augment.Recipe,
        shading: float = 0.0,
        identity: str = "",
    ) -> None:
        self.slices, self.infarcts, self.flows = list(slices), list(infarcts), list(flows)
        self.crop, self.how, self.shading, self.identity = crop, how, shading, identity

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, draw: Draw) -> Batch:
        one, rng = self.slices[draw.index], draw.numpy()
        view = view_of(one.frames.shape[-1], self.crop, self.how, rng, shading=self.shading)
        ed, es = (one.frames[one.about[phase]] for phase in ("ed", "es"))
        taken = view.take([ed, es, self.infarcts[draw.index], one.mask("myo"), *self.flows[draw.index]])
        pictures = view.shade(taken[:2])
        infarct, myo = (torch.from_numpy((mask >= 0.5).astype(np.uint8))[None] for mask in taken[2:4])
        flow = np.einsum("ij,jhw->ihw", np.linalg.inv(view.matrix), np.stack(taken[4:]))
        return {
            "moving": torch.from_numpy(pictures[1:]),
            "fixed": torch.from_numpy(pictures[:1]),
            "flow": torch.from_numpy(flow.astype(np.float32)),
            "infarct": infarct & myo,
            "myo": myo,
        }


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """(h, w) pixels to the outline, half-way between pixels, positive inside."""
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.clip(np.where(mask, inside - 0.5, 0.5 - outside), -FAR, FAR)
