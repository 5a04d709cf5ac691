"""Errors made on purpose in labels, and the network that learns to undo them.

Axes: N cases, C channels (the label, then the CT), P points, X Y Z voxels. The lattice runs along the axes of a crop,
with the same distance between its points along each.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter
from torch import Tensor, nn

from medseg_core.device import autocast, choose_precision
from medseg_core.distributed import gather, share
from medseg_core.draw import Batch, Draw
from medseg_core.losses import bce, multilabel_dice
from medseg_core.trainer import At, Score
from medseg_near.models.denoiser import FINE, REACH, Denoiser
from medseg_near.noise import Measured, corrupt, corrupted, measure
from medseg_near.occupancy import CHUNK, Ask, narrow
from medseg_near.points import inside, picture_at
from medseg_near.settings import FitConfig
from medseg_near.shapes import Shape

POINTS = 16_384
AWAY = 8  # how far from the structure the middle of a patch may lie
BAND = 7  # edge of the block within which a label must change to be near
TWICE = 0.2  # chance that a label has two kinds of error
SAME_GRID = 0.02  # a lattice that differs less from the voxels is that of the voxels
MEASURED = 64  # shapes whose centre lines are kept in memory
VALIDATED = 0.7  # amount of error at validation
TILE = 192  # points of the lattice along each edge that the network sees at once in a large crop, a multiple of 8


class Errors:
    """Shapes with errors: a patch of each, and points in it with the truth; see `draw.Samples`.

    A sample has `seen` (C, S, S, S), what is known on a patch of the lattice, `at` (P, 3), points of it, `here`
    (P, C), what is known there, and `inside` (P,), 1 where the label without errors is.

    Args:
        num_points: P.
        cell_mm: of the lattice.
    """

    def __init__(self, shapes: Sequence[Shape], config: FitConfig, *, num_points: int, cell_mm: float) -> None:
        self.shapes, self.config = list(shapes), config
        self.num_points, self.cell_mm = num_points, cell_mm
        self.measured: dict[int, Measured] = {}

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, draw: Draw) -> Batch:
        shape, rng = self.shapes[draw.index], draw.numpy()
        clean = np.asarray(shape.label)
        noisy = with_errors(clean, self.config.errors, shape.spacing_mm, rng, measured=self._measured(draw.index))
        step = steps_of(shape, self.cell_mm)
        inner = np.flatnonzero(clean)
        middle = np.array(np.unravel_index(inner[rng.integers(len(inner))], clean.shape)) / step
        middle += rng.integers(-AWAY, AWAY + 1, 3)
        edge = self.config.patch
        corner = np.rint(middle - edge / 2).astype(int)
        channels = _channels(shape, noisy, image=self.config.appearance)
        seen = np.stack([patch_of(channel, corner, step, (edge, edge, edge)) for channel in channels])
        at = _drawn(seen[0], self.num_points, rng)
        voxels = (at + corner) * step
        here = known_at(shape, noisy, voxels, image=self.config.appearance)
        mirrored = np.flatnonzero(rng.random(3) < 0.5)
        at[:, mirrored] = edge - 1 - at[:, mirrored]
        return {
            "seen": torch.from_numpy(np.flip(seen, mirrored + 1).copy()),
            "at": torch.from_numpy(at.astype(np.float32)),
            "here": torch.from_numpy(here),
            "inside": torch.from_numpy(inside(clean, voxels).astype(np.float32)),
        }

    def _measured(self, index: int) -> Measured:
        """Kept of a small cohort."""
        shape = self.shapes[index]
        found = self.measured.get(index) or measure(np.asarray(shape.label), shape.spacing_mm)
        if len(self.measured) < MEASURED:
            self.measured[index] = found
        return found


def with_errors(
    label: np.ndarray,
    kinds: Sequence[str],
    spacing_mm: Sequence[float],
    rng: np.random.Generator,
    *,
    measured: Measured | None = None,
) -> np.ndarray:
    """A label with one kind of error of any amount, sometimes two, sometimes none."""
    number = int(rng.integers(len(kinds) + 1))
    if number == len(kinds):
        return label
    more = [kinds[int(rng.integers(len(kinds)))]] if rng.random() < TWICE else []
    how: dict[str, Any] = {"amount": rng.uniform(), "spacing_mm": spacing_mm, "rng": rng, "measured": measured}
    return corrupted(label, [kinds[number], *more], **how)


def steps_of(shape: Shape, cell_mm: float) -> np.ndarray:
    """(3,) voxels of a crop from one point of the lattice to the next."""
    step = cell_mm / np.array(shape.spacing_mm)
    return np.where(np.abs(step - 1) < SAME_GRID, 1.0, step)


def patch_of(values: np.ndarray, corner: np.ndarray, step: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(size) float32 on a patch of the lattice that begins at its point `corner`; 0 beyond the crop.

    Where the lattice is coarser than the voxels, they are averaged first.
    """
    out = np.zeros(size, np.float32)
    if (step == 1).all():
        here = [slice(max(c, 0), min(c + n, m)) for c, n, m in zip(corner, size, values.shape, strict=True)]
        there = tuple(slice(part.start - c, part.stop - c) for part, c in zip(here, corner, strict=True))
        if all(part.start < part.stop for part in here):
            out[there] = values[tuple(here)]
        return out
    room = np.ceil(2 * step).astype(int) + 2  # more than the filter reaches
    low = np.clip(np.floor(corner * step).astype(int) - room, 0, values.shape)
    high = np.clip(np.ceil((corner + size) * step).astype(int) + room, low, values.shape)
    part = values[tuple(map(slice, low, high))].astype(np.float32)
    if part.size and (step > 1).any():
        part = gaussian_filter(part, np.where(step > 1, step / 2, 0), mode="nearest")
    axes = [(np.arange(n) + c) * s - a for n, c, s, a in zip(size, corner, step, low, strict=True)]
    return map_coordinates(part, np.meshgrid(*axes, indexing="ij"), out, order=1, mode="grid-constant")


def known_at(shape: Shape, label: np.ndarray, voxels: np.ndarray, *, image: bool) -> np.ndarray:
    """(P, C) float32 of a label, and of the CT of its shape, at places among the voxels."""
    found = map_coordinates(label.view(np.uint8), voxels.T, output=np.float32, order=1, mode="grid-constant")[:, None]
    return np.concatenate([found, picture_at(shape, voxels)], 1) if image else found


def _channels(shape: Shape, label: np.ndarray, *, image: bool) -> list[np.ndarray]:
    return [label, *([np.asarray(shape.image)] if image else [])]


def _drawn(label: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(P, 3) points of a patch, half of them near the surface that is seen, half of them on the lattice itself.

    They do not depend on the truth: so a probability that is learnt from them is one.
    """
    near = uniform_filter(label, BAND)
    band = np.flatnonzero((near > 0.001) & (near < 0.999))
    flat = rng.integers(label.size, size=num)
    if band.size:
        flat[: num // 2] = band[rng.integers(band.size, size=num // 2)]
    at = np.stack(np.unravel_index(flat, label.shape), 1).astype(float)
    at[::2] += rng.uniform(-0.5, 0.5, at[::2].shape)
    return at.clip(0, len(label) - 1)


class DenoiseStep:
    """Soft Dice and cross entropy at the points of each case."""

    def __call__(self, model: nn.Module, batch: Batch, _: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        wanted_NKP = batch["inside"][:, None]
        logits_NKP = model(batch["seen"], batch["at"], batch["here"])[:, None]
        parts = {"dice_loss": multilabel_dice(logits_NKP, wanted_NKP), "bce": bce(logits_NKP, wanted_NKP)}
        with torch.no_grad():
            told = {"dice": _dice(logits_NKP > 0, wanted_NKP > 0.5), "positives": batch["inside"].mean()}
            told["dice_unrepaired"] = _dice(batch["here"][:, None, :, 0] >= 0.5, wanted_NKP > 0.5)
        return {"loss": parts["dice_loss"] + parts["bce"], **parts, **told}


def _dice(one: Tensor, other: Tensor) -> Tensor:
    return 2 * (one & other).sum() / (one.sum() + other.sum()).clamp(min=1)


class Repairs:
    """Mean Dice of shapes with errors once they are repaired, on all voxels, beside what it was before.

    Args:
        shapes: best those that were not trained on.
    """

    def __init__(self, shapes: Sequence[Shape], config: FitConfig) -> None:
        num = config.num_scored or len(shapes)
        rows = sorted({round(i) for i in np.linspace(0, len(shapes) - 1, min(num, len(shapes)))})
        self.shapes, self.seed, self.kinds = [shapes[row] for row in rows], config.seed, (*config.errors, "")

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        jobs = [(row, number) for row in range(len(self.shapes)) for number in range(len(self.kinds))]
        parts = gather([(number, *self._score(model, row, number)) for row, number in share(jobs)])
        table = np.array([row for part in parts for row in part])
        hurt = table[:, 0] < len(self.kinds) - 1
        after, before = table[hurt, 1].mean(), table[hurt, 2].mean()
        told = {"dice": after, "dice_unrepaired": before, "dice_of_clean": table[~hurt, 1].mean()}
        return Score(float(table[:, 1].mean()), {name: float(value) for name, value in told.items()})

    def _score(self, model: nn.Module, row: int, number: int) -> tuple[float, float]:
        shape, kind = self.shapes[row], self.kinds[number]
        clean, rng = np.asarray(shape.label), np.random.default_rng([self.seed, row, number, 0])
        noisy = corrupt(clean, kind, amount=VALIDATED, spacing_mm=shape.spacing_mm, rng=rng) if kind else clean
        found, _ = narrow(repairing(model, shape, noisy), clean.shape, seed=noisy)
        return tuple(2 * int((one & clean).sum()) / (int(one.sum()) + int(clean.sum())) for one in (found, noisy))


@torch.inference_mode()
def repairing(model: Denoiser, shape: Shape, label: np.ndarray | None = None) -> Ask:
    """The logits of what a label should have been, at any voxels (P, 3) of its crop.

    Args:
        label: (X, Y, Z) bool in the place of the shape's own.
    """
    label = np.asarray(shape.label) if label is None else label
    device, step = model.certainty.device, steps_of(shape, model.cell_mm)
    size = tuple(int(n) for n in np.ceil((np.array(label.shape) - 1) / step).astype(int) + 1)
    channels = _channels(shape, label, image=model.in_channels > 1)
    seen = np.stack([patch_of(channel, np.zeros(3, int), step, size) for channel in channels])
    features = _features(model, torch.from_numpy(seen)[None].to(device))
    return partial(_asked, model, features, shape, label, step)


def _features(model: Denoiser, seen_NCXYZ: Tensor, *, tile: int = TILE) -> Tensor:
    """`Denoiser.features`, float32, of a lattice of any size: tile by tile, with all around each that it depends on."""
    size, device = seen_NCXYZ.shape[2:], seen_NCXYZ.device
    found = seen_NCXYZ.new_empty((1, FINE, *size))
    for starts in product(*(range(0, n, tile) for n in size)):
        inner = [slice(start, min(start + tile, n)) for start, n in zip(starts, size, strict=True)]
        outer = [slice(max(0, s.start - REACH), s.stop + REACH) for s in inner]
        with autocast(device, choose_precision("auto", device)):
            part = model.features(seen_NCXYZ[(..., *outer)])
        here = [slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True)]
        found[(..., *inner)] = part[(..., *here)]
    return found


@torch.inference_mode()
def _asked(
    model: Denoiser, features: Tensor, shape: Shape, label: np.ndarray, step: np.ndarray, voxels: np.ndarray
) -> np.ndarray:
    found, image = [], model.in_channels > 1
    for part in np.array_split(voxels.astype(float), max(1, -(-len(voxels) // CHUNK))):
        at = torch.from_numpy((part / step).astype(np.float32))[None].to(features.device)
        here = torch.from_numpy(known_at(shape, label, part, image=image))[None].to(features.device)
        found.append(model.at(features, at, here)[0].cpu().numpy())
    return np.concatenate(found)


def cell_of(shapes: Sequence[Shape]) -> float:
    """The distance of the lattice's points in mm: the median of the finest voxel edge of each shape."""
    return float(np.median([min(shape.spacing_mm) for shape in shapes]))
