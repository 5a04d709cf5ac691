"""Several views of one place of a micrograph, and windows on which pre-training is judged.

Axes: D frames of a stack (1 of a picture), H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg_core.augment import Recipe, augment, crop
from medseg_core.cases import Case
from medseg_core.draw import Batch, Draw
from medseg_sem_al.index import Index
from medseg_sem_al.samples import Windows, standardised

SCENE = 1.5  # edge of the place from which views are taken, in edges of a large view


class Views:
    """Samples of an index; see `medseg_core.draw.Samples`.

    A sample has `large` (2, D, size, size) and, where there are small ones, `small` (V, D, size // 2, size // 2), all
    float32: windows of one place of a picture, half as wide again as a large view, each changed by itself. Nothing is
    enlarged or shrunk beyond what `how` says: what is large in a micrograph is not what is small.

    Args:
        index: where the pictures are.
        cases: of it, to be trained on.
        size: edge of a large view in pixels.
        num_small: V.
        intensity: `{"mean", "std"}` of values in [0, 1], which become 0 and 1.
        how: random changes of each view.
        num_samples: of an epoch; 0 is as many as cover the pictures once, and 64 at least.
    """

    def __init__(
        self,
        index: Index,
        cases: Sequence[Case],
        *,
        size: int,
        num_small: int,
        intensity: dict[str, float],
        how: Recipe,
        num_samples: int = 0,
    ) -> None:
        self.windows = Windows(index, cases, size=size, intensity=intensity, num_samples=num_samples)
        self.size, self.num_small, self.how = size, num_small, how
        self.identity, self.order = self.windows.identity, self.windows.order

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, draw: Draw) -> Batch:
        (image, label), rng = self.windows.shelf[draw.index], draw.numpy()
        edges = np.clip(image.shape[1:], self.size, int(SCENE * self.size))
        scene, _ = self._window(image, label, edges, rng)
        found = {"large": torch.stack([self._view(scene, self.size, rng) for _ in range(2)])}
        if self.num_small:
            found["small"] = torch.stack([self._view(scene, self.size // 2, rng) for _ in range(self.num_small)])
        return found

    def _view(self, scene: np.ndarray, edge: int, rng: np.random.Generator) -> Tensor:
        image, label = self._window(scene, np.zeros(scene.shape[1:], np.uint8), (edge, edge), rng)
        outside = self.windows.intensity["mean"]
        image, _ = augment(image, label, rng, how=self.how, mirror={}, outside=outside)
        return torch.from_numpy(standardised(image, self.windows.intensity))

    def _window(
        self, image: np.ndarray, label: np.ndarray, edges: Sequence[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        return crop(image, label, edges, foreground=0.0, rng=rng, outside=self.windows.intensity["mean"])


@dataclass(frozen=True)
class Window:
    """A part of a picture, whose first pixel is at `row` and `column`; `values` (D, H, W) float32 in [0, 1]."""

    case: Case
    row: int
    column: int
    values: np.ndarray


def centre(index: Index, case: Case, size: int, multiple: int) -> Window:
    """The middle of a picture: its edges are multiples, and `size` at most; too small a picture is mirrored."""
    stack = index.stack(case)
    gaps = [(0, max(multiple - edge, 0)) for edge in stack.shape[1:]]
    stack = np.pad(stack, [(0, 0), *gaps], mode="symmetric")
    edges = [min(size, edge) // multiple * multiple for edge in stack.shape[1:]]
    row, column = ((edge - part) // 2 for edge, part in zip(stack.shape[1:], edges, strict=True))
    return Window(case, row, column, stack[:, row : row + edges[0], column : column + edges[1]])


def tiles(index: Index, case: Case, size: int, *, most: int) -> list[Window]:
    """Windows of this size, or of that of a smaller picture, side by side in its middle; `most` along an axis."""
    stack = index.stack(case)
    space = stack.shape[1:]
    edges = [min(size, edge) for edge in space]
    nums = [min(edge // part, most) for edge, part in zip(space, edges, strict=True)]
    starts = [(edge - part * num) // 2 for edge, part, num in zip(space, edges, nums, strict=True)]
    places = np.ndindex(*nums)
    corners = [[s + k * part for s, k, part in zip(starts, place, edges, strict=True)] for place in places]
    return [Window(case, r, c, stack[:, r : r + edges[0], c : c + edges[1]]) for r, c in corners]
