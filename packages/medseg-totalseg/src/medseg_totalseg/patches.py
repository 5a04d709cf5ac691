"""Training samples in 3D: patches of a prepared cohort, of which no more is read than what they cover."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg_core.augment import crop
from medseg_core.draw import Batch, Draw
from medseg_core.store import Arrays
from medseg_totalseg.places import places_of
from medseg_totalseg.slices import CohortSamples, label_names


class Patches(CohortSamples):
    """Samples of a cohort, `per_case` patches of each case an epoch, each time others; see `medseg_core.draw.Samples`.

    A sample holds what one of `Slices` does, with three axes of space: `image` (1, *patch), `label` (*patch) or
    (K, *patch).

    Args:
        cases: as `medseg_totalseg.prepare` stored them.
        patch: edges in voxels; where a volume is smaller it is padded with the lowest intensity.
        per_case: patches of a case in an epoch.
        options: as for `Slices`. A share `foreground` of the patches is centred, as far as the border lets them, on a
            voxel of a structure that is trained, each structure of the case being as likely as any other. The others
            lie anywhere.
    """

    def __init__(self, cases: Sequence[Arrays], *, patch: Sequence[int], per_case: int, **options: Any) -> None:
        super().__init__(cases, **options)
        self.patch, self.per_case = tuple(patch), per_case
        self.found: dict[int, np.ndarray] = {}
        self.runs: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.cases) * self.per_case

    def __getitem__(self, draw: Draw) -> Batch:
        number, rng = draw.index // self.per_case, draw.numpy()
        space, patch = np.array(self.cases[number]["label"].shape), np.array(self.patch)
        room = np.maximum(space - patch, 0)
        start = rng.integers(0, room + 1)
        centre = self._voxel(number, rng) if rng.random() < self.foreground else None
        if centre is not None:
            start = np.clip(centre - patch // 2, 0, room)
        place = tuple(slice(low, low + edge) for low, edge in zip(start.tolist(), self.patch, strict=True))
        image, layers = self.read(number, place)
        image, layers = crop(image, layers, self.patch, foreground=0.0, rng=rng)  # pads what is smaller
        return self.finish(number, image, layers, rng)

    def _voxel(self, number: int, rng: np.random.Generator) -> np.ndarray | None:
        """(3,) a voxel of a structure that is trained, or None where the case has none."""
        rows = self._rows(number)
        if number not in self.runs:  # where the rows of each structure begin, and how many there are
            ids, first, count = np.unique(rows[:, 0], return_index=True, return_counts=True)
            self.runs[number] = np.stack([first, count], 1)[self.kept[ids] > 0]
        runs = self.runs[number]
        if not len(runs):
            return None
        first, count = runs[rng.integers(len(runs))]
        return rows[first + rng.integers(count), 1:].astype(int)

    def _rows(self, number: int) -> np.ndarray:
        """See `places_of`; a cache of an earlier version lacks them, and they are found once a case and process."""
        arrays = self.cases[number]
        if "places" in arrays.names:
            return arrays["places"]
        if number not in self.found:
            self.found[number] = places_of([arrays[name] for name in label_names(arrays)])
        return self.found[number]
