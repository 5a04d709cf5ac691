"""Training samples: axial planes of a prepared cohort, read by memory map, cropped and augmented."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medseg_core.augment import Recipe, augment, crop
from medseg_core.draw import Batch, Draw
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays
from medseg_totalseg.prepare import whole_hu


def normalise(image: np.ndarray, intensity: Mapping[str, Any]) -> np.ndarray:
    """Intensities of a volume as the network sees them: the same for training and prediction.

    Args:
        image: (X, Y, Z) HU of a whole volume; fractions are rounded, as the cache holds whole numbers.
        intensity: {"window_hu": (low, high)}, or {"percentiles": (low, high)} of the volume's voxels.

    Returns:
        float32 in [0, 1], in the memory order of the input.
    """
    return _scale(image, *limits_of(image, intensity))


def limits_of(image: np.ndarray, intensity: Mapping[str, Any]) -> tuple[float, float]:
    """The HU that become 0 and 1.

    Raises:
        MedsegError: a window that ends where it begins, or before.
    """
    if "percentiles" in intensity:
        low, high = np.percentile(whole_hu(image), intensity["percentiles"]).tolist()
        return low, max(high, low + 1)  # a volume of one value is all 0
    low, high = intensity["window_hu"]
    if not low < high:
        raise MedsegError(f"window_hu {low:g},{high:g} is empty; give the lower value first, like -1000,1000")
    return low, high


class CohortSamples:
    """What samples of slices and of patches have in common: see `Slices` for the arguments and for what comes out."""

    identity = ""  # of the whole plan, set by it

    def __init__(
        self,
        cases: Sequence[Arrays],
        *,
        intensity: Mapping[str, Any],
        channels: Sequence[int],
        head: str,
        how: Recipe | None = None,
        mirror: Mapping[int, int] | None = None,
        foreground: float = 0.0,
    ) -> None:
        assert (0 in channels) == (head == "softmax"), f"channels {channels} of head {head}"
        self.cases, self.intensity, self.head = list(cases), intensity, head
        self.channels, self.how, self.mirror, self.foreground = tuple(channels), how, mirror, foreground
        self.some_unknown = any(arrays.about["annotated"] is not None for arrays in self.cases)
        self.limits: dict[int, tuple[float, float]] = {}
        self.kept, self.channel = _tables(self.cases, self.channels, mirror or {})

    def read(self, number: int, place: tuple[slice | int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """A part of a case: (1, *space) float32 in [0, 1], and (L, *space) ids, 0 where they are neither trained nor
        become so in a mirror."""
        arrays = self.cases[number]
        if number not in self.limits:  # percentiles are those of the volume, worked out once a case and process
            self.limits[number] = limits_of(arrays["image"], self.intensity)
        image = np.ascontiguousarray(_scale(arrays["image"][place], *self.limits[number]))
        return image[None], np.stack([self.kept.take(arrays[name][place]) for name in label_names(arrays)])

    def finish(self, number: int, image: np.ndarray, layers: np.ndarray, rng: np.random.Generator) -> Batch:
        """The sample of a crop: augmented, and with the target that the loss takes."""
        arrays = self.cases[number]
        if self.how is not None:
            spacing = arrays.about["spacing_mm"][: image.ndim - 1]
            image, layers = augment(image, layers, rng, how=self.how, spacing=spacing, mirror=self.mirror)
        sample = {"image": torch.from_numpy(image), "label": torch.from_numpy(self._target(layers))}
        if self.some_unknown:
            annotated = arrays.about["annotated"]
            known = [i == 0 or annotated is None or i in annotated for i in self.channels]
            sample["known"] = torch.tensor(known)
        return sample

    def _target(self, layers: np.ndarray) -> np.ndarray:
        """(L, *space) ids -> what the loss takes."""
        channels = self.channel.take(layers)
        if self.head == "softmax":
            label = channels[0]
            for below in channels[1:]:  # a structure that is no channel hides nothing
                label = np.where(label == 0, below, label)
            return label.astype(np.int64)
        target = np.zeros((len(self.channels) + 1, *layers.shape[1:]), np.uint8)
        for layer in channels:
            np.put_along_axis(target, layer[None], 1, axis=0)
        return target[1:]


class Slices(CohortSamples):
    """Samples of a cohort, one per axial plane; see `medseg_core.draw.Samples`.

    A sample holds `image` (1, size, size) float32 in [0, 1], X before Y, and `label`: under softmax (size, size) int64
    channel numbers, 0 for background; under sigmoid (K, size, size) uint8, 1 where the channel's structure is, also
    where structures overlap. Where structures were not annotated in every case, `known` (K,) bool says which were.

    Args:
        cases: as `medseg_totalseg.prepare` stored them.
        size: edge in pixels; larger planes are cropped, smaller ones padded with the lowest intensity.
        intensity: see `normalise`.
        channels: label id of each output channel; 0, the background, comes first under softmax and nowhere else.
        head: "softmax" or "sigmoid".
        how: what is changed at random; None for nothing but the crop.
        mirror: label id -> id on the other side, of all ids that are stored; None mirrors nothing.
        foreground: share of crops that are centred on a structure.
    """

    def __init__(self, cases: Sequence[Arrays], *, size: int, **options: Any) -> None:
        super().__init__(cases, **options)
        self.size = size
        self.places = [(c, k) for c, arrays in enumerate(self.cases) for k in range(arrays["label"].shape[2])]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, draw: Draw) -> Batch:
        number, k = self.places[draw.index]
        rng = draw.numpy()
        image, layers = self.read(number, (slice(None), slice(None), k))
        image, layers = crop(image, layers, (self.size, self.size), foreground=self.foreground, rng=rng)
        return self.finish(number, image, layers, rng)


def label_names(arrays: Arrays) -> list[str]:
    """The label map of a case, and those of further structures where masks overlap."""
    return [name for name in arrays.names if name.startswith("label")]


def _tables(
    cases: Sequence[Arrays], channels: tuple[int, ...], mirror: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Two tables over all ids that are stored: the ids that are kept, and the channels that they go to.

    Kept are those of the channels, and those that become one in a mirror. A channel counts from 0 for the background,
    from 1 where there is none, so that 0 always means nothing.
    """
    largest = max([int(np.iinfo(arrays["label"].dtype).max) for arrays in cases] + [*channels, *mirror])
    ids = np.arange(largest + 1, dtype=np.int32)
    wanted = np.isin(ids, channels)
    partner = ids.copy()
    partner[list(mirror)] = list(mirror.values())
    kept = np.where(wanted | wanted[partner], ids, 0)
    channel = np.zeros_like(ids)
    channel[list(channels)] = np.arange(len(channels)) + (0 not in channels)
    return kept, channel


def _scale(image: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = image.astype(np.float32)
    if image.dtype.kind == "f":
        np.rint(scaled, out=scaled)
    np.clip(scaled, low, high, out=scaled)
    scaled -= np.float32(low)
    scaled /= np.float32(high - low)
    return scaled
