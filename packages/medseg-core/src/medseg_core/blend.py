"""Overlapping windows become one picture, whose voxels leave as soon as no window to come reaches them.

Axes: K classes, W the axes of a window, S those of the image (two or three).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from medseg_core.windows import Corner, Plan, Tile

Put = Callable[[Tensor, Corner], None]


class Blend:
    """Sums the windows of a tile by their weights, and hands on what is final.

    A row shares its first planes with the row before: these lie in `kept`, over the whole plane. Its other planes lie
    in `band`, for as many lines as one band of windows covers. Once a band is done, the lines that the next band does
    not reach are final in the planes that the next row does not reach; the rest of them moves from `band` to `kept`.

    Args:
        put: takes final logits (K, *block) and the block's corner; they are its own only until it returns.
    """

    def __init__(self, plan: Plan, tile: Tile, *, num_classes: int, device: torch.device, put: Put) -> None:
        self.plan, self.tile, self.put = plan, tile, put
        shape = [num_classes, *plan.size]
        shape[1 + plan.order[-1]] = tile.stop - tile.start
        shape[1 + plan.slow] = plan.kept
        self.kept = torch.zeros(shape, device=device)  # plane p lies at p modulo its planes
        shape[1 + plan.slow], shape[1 + plan.middle] = plan.fresh, plan.window[plan.middle]
        self.band = torch.zeros(shape, device=device)  # line l lies at l modulo its lines; planes count from `reached`
        self.row = self.line = 0  # where the windows of now start
        self.reached = plan.kept  # the first plane of this row that no earlier one reached; the first row has its zeros
        self.weights = [{s: torch.from_numpy(w).to(device) for s, w in axis.items()} for axis in plan.weights]

    def add(self, y_KW: Tensor, corner: Corner) -> None:
        """Add a window's logits; windows come in the order of the tile."""
        plan = self.plan
        row, line = corner[plan.slow], corner[plan.middle]
        if (row, line) != (self.row, self.line):
            self._close(line if row == self.row else plan.size[plan.middle])
            if row != self.row:
                self.reached = self.row + plan.window[plan.slow]
            self.row, self.line = row, line
        weight_W = torch.ones((), device=y_KW.device)
        for axis, start in enumerate(corner):
            weight_W = weight_W[..., None] * self.weights[axis][start]
        here, there = self._inside(corner)
        y_KW, weight_1W = y_KW.float()[here], weight_W[None][here]
        for y_KS, plane, first in self._parts(row, row + plan.window[plan.slow], line, line + plan.window[plan.middle]):
            planes, lines = (plane - row, y_KS.shape[1 + plan.slow]), (first - line, y_KS.shape[1 + plan.middle])
            y_KS[there].addcmul_(self._cut(y_KW, planes, lines), self._cut(weight_1W, planes, lines))

    def finish(self) -> None:
        """Hand on what is left, after the last window."""
        self._close(self.plan.size[self.plan.middle])

    def _close(self, stop: int) -> None:
        """The lines from `self.line` to `stop` get no more from this row."""
        plan, end = self.plan, self.row + self.plan.window[self.plan.slow]
        final = next((s for s in plan.weights[plan.slow] if s > self.row), plan.size[plan.slow])
        for y_KS, plane, line in self._parts(self.row, final, self.line, stop):
            corner = [0] * len(plan.size)
            corner[plan.order[-1]] = self.tile.start
            corner[plan.slow], corner[plan.middle] = plane, line
            self.put(y_KS, tuple(corner))
        for y_KS, plane, line in self._parts(max(final, self.reached), end, self.line, stop):
            lines = y_KS.shape[1 + plan.middle]
            for run, slot, num in _runs(plane, end, plan.kept):
                part = self._cut(y_KS, (run - plane, num), (0, lines))
                self._cut(self.kept, (slot, num), (line, lines)).copy_(part)
        for _, slot, num in _runs(self.line, stop, plan.window[plan.middle]):
            self.band.narrow(1 + plan.middle, slot, num).zero_()

    def _inside(self, corner: Corner) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The part of a window that lies in the tile, counted from the window and from the tile."""
        here, there = ([slice(None)] * (1 + len(corner)) for _ in range(2))
        if len(corner) == 3:
            axis = self.plan.order[2]
            start = max(corner[axis], self.tile.start)
            stop = min(corner[axis] + self.plan.window[axis], self.tile.stop)
            here[1 + axis] = slice(start - corner[axis], stop - corner[axis])
            there[1 + axis] = slice(start - self.tile.start, stop - self.tile.start)
        return tuple(here), tuple(there)

    def _parts(self, plane: int, stop_plane: int, line: int, stop: int) -> Iterator[tuple[Tensor, int, int]]:
        """Planes and lines of this row, where they are held: (logits, their first plane, their first line)."""
        for run, slot, num in _runs(plane, min(stop_plane, self.reached), self.plan.kept):
            yield self._cut(self.kept, (slot, num), (line, stop - line)), run, line
        first = max(plane, self.reached)
        if first < stop_plane:
            for run, slot, num in _runs(line, stop, self.plan.window[self.plan.middle]):
                yield self._cut(self.band, (first - self.reached, stop_plane - first), (slot, num)), first, run

    def _cut(self, y_KS: Tensor, planes: tuple[int, int], lines: tuple[int, int]) -> Tensor:
        """So many from a start, along the slow and the middle axis."""
        return y_KS.narrow(1 + self.plan.slow, *planes).narrow(1 + self.plan.middle, *lines)


def _runs(start: int, stop: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """What lies from start to stop, each at itself modulo `depth`, as (first, its place, how many)."""
    while start < stop:
        place = start % depth
        count = min(stop - start, depth - place)
        yield start, place, count
        start += count
