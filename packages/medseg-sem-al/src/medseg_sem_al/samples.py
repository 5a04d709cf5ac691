"""Training samples: windows of micrographs, grey, of mean 0 and deviation 1.

Axes: D frames of a stack (1 of a picture), H W of a picture.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medseg_core.augment import Recipe, augment, crop
from medseg_core.cases import Case
from medseg_core.draw import Batch, Draw, repeated
from medseg_core.errors import MedsegError
from medseg_sem_al.index import Index, moments

LEAST = 64  # windows of an epoch, however few the pictures are
HELD_BYTES = 2 * 10**9  # of pictures that a process keeps in memory


class Shelf:
    """Pictures and masks of an index, read once as long as memory is left for them.

    Args:
        index: where they are.
        cases: in the order of their numbers.
    """

    def __init__(self, index: Index, cases: Sequence[Case]) -> None:
        self.index, self.cases = index, list(cases)
        self.held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.num_bytes = 0

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(D, H, W) float32 in [0, 1], and (H, W) uint8 of ids from 1 on, 0 where nobody labelled; 1 without a mask."""
        if number in self.held:
            return self.held[number]
        case = self.cases[number]
        image = self.index.stack(case)
        has_mask = "label" in case.files
        label = self.index.label(case) + np.uint8(1) if has_mask else np.ones(image.shape[1:], np.uint8)
        if self.num_bytes + image.nbytes + label.nbytes <= HELD_BYTES:
            self.held[number] = (image, label)
            self.num_bytes += image.nbytes + label.nbytes
        return image, label


class Windows:
    """Samples of an index; see `medseg_core.draw.Samples`.

    A sample has `image` (D, size, size) float32 and `label` (size, size) uint8, 255 beyond the picture and where nobody
    labelled; 0 inside of one without a mask. Where labels are only in parts of a picture, windows lie around these.

    Args:
        index: where the pictures are.
        cases: of it, to be trained on.
        size: edge of a window in pixels; smaller pictures are padded.
        intensity: `{"mean", "std"}` of values in [0, 1], which become 0 and 1.
        how: random changes.
        sampler: "uniform" takes each picture as often; "per-dataset" each data set; "per-class" each class, and
            centres windows on it.
        num_samples: of an epoch; 0 is as many as cover the pictures once, and 64 at least.
    """

    def __init__(
        self,
        index: Index,
        cases: Sequence[Case],
        *,
        size: int,
        intensity: dict[str, float],
        how: Recipe | None = None,
        sampler: str = "uniform",
        num_samples: int = 0,
    ) -> None:
        self.shelf, self.size, self.intensity = Shelf(index, cases), size, intensity
        self.how, self.sampler = how, sampler
        edges = np.array([case.notes["size"] for case in cases])
        labelled = np.array([case.notes.get("labelled", 1.0) for case in cases])
        covering = int(np.ceil(np.ceil(edges / size).prod(1) * labelled).sum())
        self.num_samples = num_samples or max(LEAST, covering)
        self.groups = [np.array(group) for group in self._groups()]
        self.identity = _identity(cases)

    def __len__(self) -> int:
        return self.num_samples

    def order(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """As many pictures of each group, and within a group of each picture, as can be."""
        num = len(self)
        which = rng.permutation(repeated(np.arange(len(self.groups)), num, rng))
        order = np.empty(num, np.int64)
        for number, group in enumerate(self.groups):
            places = np.flatnonzero(which == number)
            order[places] = rng.permutation(repeated(group, len(places), rng))
        return order

    def __getitem__(self, draw: Draw) -> Batch:
        image, label = self.plain(draw)
        return {"image": torch.from_numpy(standardised(image, self.intensity)), "label": torch.from_numpy(label)}

    def plain(self, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """(D, size, size) float32 about 0 to 1, and (size, size) uint8 ids."""
        (image, label), rng = self.shelf[draw.index], draw.numpy()
        foreground = 1.0 if self.sampler == "per-class" else 0.0
        mean = self.intensity["mean"]
        if not foreground and "labelled" in self.shelf.cases[draw.index].notes:
            image, label = _around_a_label(image, label, self.size, rng)
        how: dict[str, Any] = {"foreground": foreground, "rng": rng, "outside": mean}
        image, label = crop(image, label, (self.size, self.size), **how)
        if self.how is not None:
            image, label = augment(image, label, rng, how=self.how, mirror={1: 1}, outside=mean)
        return image, label - np.uint8(1)  # 0 becomes 255, UNSEEN

    def _groups(self) -> list[list[int]]:
        """Numbers of the cases of each group; a case may be in several."""
        if self.sampler == "uniform":
            return [list(range(len(self.shelf.cases)))]
        found: dict[Any, list[int]] = {}
        for number, case in enumerate(self.shelf.cases):
            kinds = [case.notes["dataset"]]
            if self.sampler == "per-class":
                kinds = [str(k) for k, share in enumerate(case.notes["shares"]) if share > 0]
            for kind in kinds:
                found.setdefault(kind, []).append(number)
        return [found[kind] for kind in sorted(found)]


def _around_a_label(
    image: np.ndarray, label: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The window with a labelled pixel, each as likely, in its middle, or near that at the picture's edge."""
    places = np.flatnonzero(label)
    centre = np.unravel_index(places[rng.integers(len(places))], label.shape)
    starts = [int(np.clip(c - size // 2, 0, max(edge - size, 0))) for c, edge in zip(centre, label.shape, strict=True)]
    rows, columns = (slice(start, start + size) for start in starts)
    return image[:, rows, columns], label[rows, columns]


def standardised(image: np.ndarray, intensity: dict[str, float]) -> np.ndarray:
    """float32 whose mean over the data set is 0 and whose deviation is 1."""
    return (image - np.float32(intensity["mean"])) / np.float32(intensity["std"])


def intensity_of(cases: Sequence[Case]) -> dict[str, float]:
    """Mean and standard deviation of all pixels of these pictures.

    Raises:
        MedsegError: pictures of one value.
    """
    mean, std = moments(cases)
    if std < 1e-4:
        raise MedsegError("all pictures are of one value: there is nothing to learn from them")
    return {"mean": round(mean, 6), "std": round(std, 6)}


def _identity(cases: Sequence[Case]) -> str:
    """Another text for other pictures, neighbours or roles."""
    words = ("mean", "shares", "labelled")
    facts = [
        (c.id, c.split, [c.notes.get(word) for word in words], {role: path.name for role, path in c.files.items()})
        for c in sorted(cases, key=lambda case: case.id)
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
