"""Where the windows of `infer` lie, in which order they are worked off, what memory that takes, and how they are read.

Axes: N windows, C input channels, K classes, W the axes of a window, S those of the image (two or three).
All positions count from the corner of the padded image.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Corner = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of the image along the fastest axis, with the windows that reach into it."""

    start: int
    stop: int
    batches: tuple[tuple[Corner, ...], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Windows in the order in which they are worked off.

    A row is the windows of one start on the slow axis, a band those of a row with one start on the middle axis. An
    image of three axes may be cut along the last of them into tiles, each worked off by itself: windows that reach into
    two tiles are computed twice.
    """

    window: tuple[int, ...]
    size: tuple[int, ...]  # of the image, padded to the window at least
    before: tuple[int, ...]  # padding in front of the image
    order: tuple[int, ...]  # of the axes: on the first, windows move on last
    weights: tuple[Mapping[int, np.ndarray], ...]  # for each axis: start -> (edge,); at each voxel they sum to one
    overlap: float
    batch_size: int
    num_tiles: int = 1

    @property
    def slow(self) -> int:
        """The axis along which rows follow each other."""
        return self.order[0]

    @property
    def middle(self) -> int:
        """The axis along which the bands of a row follow each other."""
        return self.order[1]

    @functools.cached_property
    def is_plain(self) -> bool:
        """Each voxel lies in one window: nothing to blend, nothing to wait for."""
        return all((w == 1).all() for axis in self.weights for w in axis.values())

    @functools.cached_property
    def kept(self) -> int:
        """The most planes across the slow axis that a row has in common with the next."""
        return self.window[self.slow] - min(_steps(self.weights[self.slow], self.window[self.slow]))

    @functools.cached_property
    def fresh(self) -> int:
        """The most planes of a row that no row before it reaches."""
        return max(_steps(self.weights[self.slow], self.window[self.slow]))

    @functools.cached_property
    def cuts(self) -> list[int]:
        """Where tiles begin, and the image's end: where windows begin or end, so that fewest reach into two tiles."""
        length, edge = self.size[self.order[-1]], self.window[self.order[-1]]
        places = sorted({place for start in self.weights[self.order[-1]] for place in (start, start + edge)})
        even = [n * length / self.num_tiles for n in range(1, self.num_tiles)]
        return sorted({0, length, *(min(places, key=lambda place: abs(place - at)) for at in even)})

    @property
    def num_held(self) -> int:
        """Voxels whose logits are held between windows, at most."""
        if self.is_plain:
            return 0
        length = max(b - a for a, b in itertools.pairwise(self.cuts)) if len(self.size) == 3 else 1
        return length * (self.kept * self.size[self.middle] + self.fresh * self.window[self.middle])

    @property
    def num_windows(self) -> int:
        """Without what tiles compute twice."""
        return math.prod(map(len, self.weights))

    def tiles(self) -> list[Tile]:
        """From first to last; the first batch of the first has one window, which tells K."""
        axis, found = self.order[-1], []
        for start, stop in itertools.pairwise(self.cuts):
            reaching = [list(starts) for starts in self.weights]
            reaching[axis] = [s for s in reaching[axis] if s < stop and s + self.window[axis] > start]
            corners = sorted(itertools.product(*reaching), key=lambda corner: [corner[a] for a in self.order])
            alone = 0 if found else 1
            batches = [corners[n : n + self.batch_size] for n in range(alone, len(corners), self.batch_size)]
            found.append(Tile(start, stop, tuple(map(tuple, [corners[:1], *batches] if alone else batches))))
        return found


def plan_windows(shape: tuple[int, ...], window: tuple[int, ...], *, overlap: float, batch_size: int) -> Plan:
    """Windows over an image of `shape` in the order that holds the fewest voxels, in one tile.

    Args:
        overlap: the least share of its edge that a window has in common with the next, in [0, 1).
    """
    size = tuple(map(max, shape, window))
    weights = tuple(_weights(n, edge, overlap) for n, edge in zip(size, window, strict=True))
    before = tuple((n - s) // 2 for n, s in zip(size, shape, strict=True))
    orders = itertools.permutations(range(len(size)))
    plans = [Plan(window, size, before, order, weights, overlap, batch_size) for order in orders]
    return min(plans, key=lambda plan: (plan.num_held, window[plan.slow] / size[plan.slow]))


def thriftier(plan: Plan) -> Iterator[Plan]:
    """The same windows in smaller batches, then in more and more tiles: less memory, then more computing."""
    size = min(plan.batch_size, plan.num_windows)
    yield plan
    while size > 1:
        size //= 2
        yield dataclasses.replace(plan, batch_size=size)
    if len(plan.size) == 3:
        for num_tiles in range(2, len(plan.weights[plan.order[-1]]) + 1):
            yield dataclasses.replace(plan, batch_size=1, num_tiles=num_tiles)


def logits_bytes(plan: Plan, num_classes: int, *, copies: int = 1) -> int:
    """Memory for logits: those held between windows, and those of a batch.

    Args:
        copies: of a batch's logits at the same time.
    """
    batch = min(plan.batch_size, plan.num_windows) * math.prod(plan.window)
    return 4 * num_classes * (plan.num_held + copies * batch)


def read_windows(
    image: np.ndarray, corners: Sequence[Corner], plan: Plan, *, outside: float, device: torch.device
) -> Tensor:
    """(N, C, *W) float32 on `device` of an image (C, *S), with `outside` where there is none."""
    shape = (len(corners), len(image), *plan.window)
    x_NCW = torch.full(shape, outside, dtype=torch.float32, pin_memory=device.type == "cuda")  # copied without waiting
    for x_CW, corner in zip(x_NCW.numpy(), corners, strict=True):
        first = [c - b for c, b in zip(corner, plan.before, strict=True)]
        there = [slice(max(f, 0), f + w) for f, w in zip(first, plan.window, strict=True)]
        part = image[:, *there]
        here = [slice(s.start - f, s.start - f + n) for s, f, n in zip(there, first, part.shape[1:], strict=True)]
        x_CW[:, *here] = part
    return x_NCW.to(device, non_blocking=True)


def _weights(size: int, edge: int, overlap: float) -> dict[int, np.ndarray]:
    """Evenly spread starts, each with its Gaussian over the sum of all: the weight of a window is their product."""
    step = max(1.0, edge * (1 - overlap))
    starts = np.linspace(0, size - edge, math.ceil((size - edge) / step) + 1).round().astype(int).tolist()
    gauss = np.exp(-0.5 * ((np.arange(edge) - (edge - 1) / 2) / (edge / 8)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + edge] += gauss
    return {start: (gauss / total[start : start + edge]).astype(np.float32) for start in starts}


def _steps(starts: Mapping[int, np.ndarray], edge: int) -> list[int]:
    """From each start to the next; the edge of a window where there is but one."""
    return [b - a for a, b in itertools.pairwise(starts)] or [edge]
