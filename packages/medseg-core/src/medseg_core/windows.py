"""Where the windows of `infer` lie, how they are read, and the ring that blends what comes out of them.

Axes: N windows, C input channels, K classes, W the axes of a window, S those of the image (two or three).
All positions count from the corner of the padded image.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg_core.errors import MedsegError

Corner = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Windows in the order of one axis, in batches."""

    window: tuple[int, ...]
    size: tuple[int, ...]  # of the image, padded to the window at least
    before: tuple[int, ...]  # padding in front of the image
    axis: int  # along which slabs are worked off
    batches: tuple[tuple[Corner, ...], ...]
    weights: tuple[Mapping[int, np.ndarray], ...]  # for each axis: start -> (edge,); at each voxel they sum to one

    @functools.cached_property
    def is_plain(self) -> bool:
        """Each voxel lies in one window, and a window spans the plane: nothing to blend, nothing to wait for."""
        spans = all(n == w for a, (n, w) in enumerate(zip(self.size, self.window, strict=True)) if a != self.axis)
        return spans and all((w == 1).all() for w in self.weights[self.axis].values())

    @functools.cached_property
    def depth(self) -> int:
        """The most planes between the first that a batch reaches and its last."""
        advance = max(batch[-1][self.axis] - batch[0][self.axis] for batch in self.batches)
        return min(self.window[self.axis] + advance, self.size[self.axis])


def plan_windows(shape: tuple[int, ...], window: tuple[int, ...], *, overlap: float, batch_size: int) -> Plan:
    """Windows over an image of `shape`, worked off along the axis on which they are shortest beside it.

    Args:
        overlap: the least share of its edge that a window has in common with the next, in [0, 1).
        batch_size: windows in a batch; the first has one.
    """
    size = tuple(map(max, shape, window))
    axis = min(range(len(size)), key=lambda a: window[a] / size[a])
    weights = tuple(_weights(n, edge, overlap) for n, edge in zip(size, window, strict=True))
    corners = sorted(itertools.product(*weights), key=lambda corner: corner[axis])
    batches = [corners[:1], *(corners[i : i + batch_size] for i in range(1, len(corners), batch_size))]
    before = tuple((n - s) // 2 for n, s in zip(size, shape, strict=True))
    return Plan(window, size, before, axis, tuple(map(tuple, batches)), weights)


def _weights(size: int, edge: int, overlap: float) -> dict[int, np.ndarray]:
    """Evenly spread starts, each with its Gaussian over the sum of all: the weight of a window is their product."""
    step = max(1.0, edge * (1 - overlap))
    starts = np.linspace(0, size - edge, math.ceil((size - edge) / step) + 1).round().astype(int).tolist()
    gauss = np.exp(-0.5 * ((np.arange(edge) - (edge - 1) / 2) / (edge / 8)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + edge] += gauss
    return {start: (gauss / total[start : start + edge]).astype(np.float32) for start in starts}


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


class Ring:
    """Blended logits of `plan.depth` planes; plane p lies at p modulo the depth.

    Raises:
        MedsegError: they do not fit into memory.
    """

    def __init__(self, plan: Plan, num_classes: int, device: torch.device) -> None:
        self.plan, self.along, self.done = plan, plan.axis + 1, 0
        shape = [num_classes, *(plan.depth if a == plan.axis else n for a, n in enumerate(plan.size))]
        _check_memory(4 * math.prod(shape), device, plan)
        if plan.window[plan.axis] == 1:  # planes come and go alone: each lies in one piece, twice as fast
            shape.insert(0, shape.pop(self.along))
            self.y_KS = torch.zeros(shape, device=device).movedim(0, self.along)
        else:
            self.y_KS = torch.zeros(shape, device=device)
        self.weights = [{s: torch.from_numpy(w).to(device) for s, w in axis.items()} for axis in plan.weights]

    def add(self, y_KW: Tensor, corner: Corner) -> None:
        """Add a window's logits by its weights; planes before the window's first must have been released."""
        weight_W, plane = torch.ones((), device=y_KW.device), [slice(None)]
        for axis, (start, edge) in enumerate(zip(corner, self.plan.window, strict=True)):
            weight_W = weight_W[..., None] * self.weights[axis][start]
            plane.append(slice(None) if axis == self.plan.axis else slice(start, start + edge))
        y_KS, y_KW, first = self.y_KS[tuple(plane)], y_KW.float(), corner[self.plan.axis]
        for run, at, count in self._runs(first, first + self.plan.window[self.plan.axis]):
            weight = weight_W.narrow(self.along - 1, run - first, count)
            y_KS.narrow(self.along, at, count).addcmul_(y_KW.narrow(self.along, run - first, count), weight)

    def release(self, stop: int, put: Callable[[Tensor, int], None]) -> None:
        """Hand the planes before `stop` that are still held to `put(y_KS, first plane)`, and forget them."""
        for run, at, count in self._runs(self.done, stop):
            y_KS = self.y_KS.narrow(self.along, at, count)
            put(y_KS, run)
            y_KS.zero_()
        self.done = stop

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Planes from start to stop as (first plane, its place in the ring, how many): two runs where the ring ends."""
        while start < stop:
            at = start % self.plan.depth
            count = min(stop - start, self.plan.depth - at)
            yield start, at, count
            start += count


def _check_memory(num_bytes: int, device: torch.device, plan: Plan) -> None:
    free = _free_bytes(device)
    if num_bytes <= free:
        return
    edge, size = plan.window[plan.axis], max(map(len, plan.batches))
    need = f"blending needs {num_bytes / 1e9:.1f} GB for logits, {free / 1e9:.1f} GB are free on {device}"
    if plan.depth >= 2 * edge:
        raise MedsegError(f"{need}; lower batch_size (now {size})")
    raise MedsegError(f"{need}; lower window[{plan.axis}] (now {edge}; at 1 a 2D net runs plane by plane)")


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return math.inf
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
