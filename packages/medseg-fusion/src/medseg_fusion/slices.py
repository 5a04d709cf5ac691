"""Training samples: slices of prepared patients, CT and PET as two channels of 0 to 1.

Axes: A B those of a slice, S slices, N slices of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.ndimage import shift

from medseg_core.augment import Recipe, augment, crop
from medseg_core.draw import Batch, Draw, repeated
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays
from medseg_fusion.patients import BITS

LARGEST = 512
STRIDE = 16


def intensity_of(unit: str, window_hu: Sequence[float], clip_suv: Sequence[float]) -> dict[str, Any]:
    """What a card says of the values: unit, and the ends of CT and PET that become 0 and 1.

    Raises:
        MedsegError: an end that is not above the other.
    """
    for name, (low, high) in (("window_hu", window_hu), ("clip_suv", clip_suv)):
        if not low < high:
            raise MedsegError(f"{name} {low:g},{high:g} is empty; give the lower value first")
    if unit == BITS:
        return {"unit": unit, "ct": [0.0, 255.0], "pet": [0.0, 255.0]}
    return {"unit": unit, "ct": list(window_hu), "pet": list(clip_suv)}


def scaled(ct: np.ndarray, pet: np.ndarray, intensity: Mapping[str, Any]) -> np.ndarray:
    """(2, ...) float32 in [0, 1], CT before PET."""
    both = np.empty((2, *ct.shape), np.float32)
    for row, values, (low, high) in zip(both, (ct, pet), (intensity["ct"], intensity["pet"]), strict=True):
        np.clip((values.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1, out=row)
    return both


class Slices:
    """Samples of a cohort; see `medseg_core.draw.Samples`.

    A sample has `image` (2, size, size) float32 in [0, 1], CT and PET; `present` (2,) float32, 1 where the modality is
    there; `label` (1, size, size) uint8.

    Args:
        cases: as `prepare` stored them, with masks.
        size: edge in pixels; larger slices are cropped, smaller ones padded with 0.
        intensity: of `intensity_of`.
        how: random changes of both pictures and the mask.
        tumour_share: of the samples of an epoch, from slices with tumour; 0 takes every slice once.
        drop_chance: that one modality is missing; each as often.
        misalign_mm: standard deviation of moves of PET in the plane.
        num_samples: of an epoch; 0 is as many as there are slices.
    """

    def __init__(
        self,
        cases: Sequence[Arrays],
        *,
        size: int,
        intensity: Mapping[str, Any],
        how: Recipe | None = None,
        tumour_share: float = 0.0,
        drop_chance: float = 0.0,
        misalign_mm: float = 0.0,
        num_samples: int = 0,
    ) -> None:
        if how is not None and intensity["unit"] == BITS:  # left and right lie along W of a picture, axis 1
            how = replace(how, flip_axes=tuple(1 - axis for axis in how.flip_axes))
        self.cases, self.size, self.intensity, self.how = list(cases), size, intensity, how
        self.tumour_share, self.drop_chance, self.misalign_mm = tumour_share, drop_chance, misalign_mm
        self.places = [(c, k) for c, arrays in enumerate(self.cases) for k in range(arrays["ct"].shape[2])]
        self.num_samples = num_samples or len(self.places)
        marked = [arrays["label"].any((0, 1)) for arrays in self.cases]
        self.has_tumour = np.concatenate(marked) if marked else np.zeros(0, bool)

    def __len__(self) -> int:
        return self.num_samples

    def order(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Which slices an epoch has: so many with tumour as is asked, each as often as its like, and the others."""
        kinds, num = [np.flatnonzero(self.has_tumour), np.flatnonzero(~self.has_tumour)], len(self)
        if not self.tumour_share or not all(len(kind) for kind in kinds):
            return rng.permutation(repeated(np.arange(len(self.places)), num, rng))
        ill = round(self.tumour_share * num)
        drawn = [repeated(kind, part, rng) for kind, part in zip(kinds, (ill, num - ill), strict=True)]
        return rng.permutation(np.concatenate(drawn))

    def __getitem__(self, draw: Draw) -> Batch:
        (number, k), rng = self.places[draw.index], draw.numpy()
        arrays = self.cases[number]
        image = scaled(arrays["ct"][..., k], arrays["pet"][..., k], self.intensity)
        spacing = arrays.about["spacing"][:2]
        if self.misalign_mm:
            image[1] = shift(image[1], rng.normal(0, self.misalign_mm, 2) / spacing, order=1)
        label = np.ascontiguousarray(arrays["label"][..., k])
        image, label = crop(image, label, (self.size, self.size), foreground=0.5, rng=rng)
        if self.how is not None:
            image, label = augment(image, label, rng, how=self.how, spacing=spacing, mirror={1: 1})
        present = np.ones(2, np.float32)
        if rng.random() < 2 * self.drop_chance:
            present[rng.integers(2)] = 0
        return {
            "image": torch.from_numpy(image),
            "present": torch.from_numpy(present),
            "label": torch.from_numpy(label[None]),
        }


def size_of(cases: Sequence[Arrays]) -> int:
    """The edge that holds the largest slice, a multiple of 16 and at most 512."""
    edge = max(max(arrays["ct"].shape[:2]) for arrays in cases)
    return min(LARGEST, -(-edge // STRIDE) * STRIDE)
