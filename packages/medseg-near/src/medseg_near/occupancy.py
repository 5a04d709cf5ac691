"""The field of a shape on grids of points: everywhere, or only where its surface may be.

Axes: P points, X Y Z voxels. A grid of points is given by its shape and a `Frame`, from the cube to its voxels.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

from medseg_near.models.field import Shapes
from medseg_near.points import Frame
from medseg_near.shapes import box_of

CHUNK = 65_536  # points at a time
CPU_CHUNK = 4096  # of them through the network at a time: what it makes of them stays in a core's cache
COARSEST = 16  # points at least along the longest edge of the first search
SLAB = 16  # planes of a mask looked through at a time
ROWS = 65_536  # rows of a mask looked at together
Ask = Callable[[np.ndarray], np.ndarray]  # (P, 3) voxels -> (P,) float32 logits


@torch.inference_mode()
def occupancy(model: Shapes, latent: Tensor, points_mm: Tensor, picture: Tensor | None = None) -> Tensor:
    """(P,) probabilities that points are inside a shape.

    Args:
        latent: (L,) numbers, a row of `model.latents` or of a run's `latents.csv`.
        points_mm: (P, 3) from the middle of the structure's box, to the right, to anterior and to superior.
        picture: (P, 1) CT values, 0 to 1, for a model that wants them.
    """
    return _logits(model, model.decoder.maps(latent[None]), points_mm / model.half_mm, picture).sigmoid()


def asking(model: Shapes, latent: Tensor, frame: Frame, picture_at: Callable | None = None) -> Ask:
    """The logits of a shape at voxels of a grid, in chunks; a point's answer does not depend on the chunk."""
    with torch.inference_mode():
        maps = model.decoder.maps(latent[None])

    @torch.inference_mode()
    def ask(voxels: np.ndarray) -> np.ndarray:
        found = []
        for part in np.array_split(voxels, max(1, -(-len(voxels) // CHUNK))):
            points = torch.from_numpy(frame.points(part.astype(float)).astype(np.float32)).to(latent.device)
            picture = None if picture_at is None else torch.from_numpy(picture_at(part)).to(latent.device)
            found.append(_logits(model, maps, points, picture).cpu().numpy())
        return np.concatenate(found)

    return ask


def _logits(model: Shapes, maps: list[Tensor], points: Tensor, picture: Tensor | None) -> Tensor:
    """(P,) float32 at (P, 3) points of the cube, in chunks."""
    alone = model.decoder.net in ("pointwise", "triplane")  # the others' answers change with the chunk
    size = CPU_CHUNK if alone and points.device.type == "cpu" else CHUNK
    parts = points.split(size)
    looks = [None] * len(parts) if picture is None else [part[None] for part in picture.split(size)]
    found = [model.decoder.at(maps, part[None], look)[0] for part, look in zip(parts, looks, strict=True)]
    return torch.cat(found).float()


def cube(resolution: int) -> Frame:
    """The frame of the grid of `resolution`^3 points whose first and last are -1 and 1."""
    middle = (resolution - 1) / 2
    return Frame(np.eye(3) * middle, np.full(3, middle))


def on_grid(label: np.ndarray, frame: Frame, grid: Frame, shape: tuple[int, int, int]) -> np.ndarray:
    """(X, Y, Z) bool: a label on a grid, each point as its nearest voxel. Outside of its box nothing is reckoned.

    Args:
        label: (A, B, C) bool.
        frame, grid: from the cube to the voxels of the label, and to those of the grid.
    """
    laid, box = np.zeros(shape, bool), box_of(label)
    if box is None:
        return laid
    corners = np.stack(np.meshgrid(*((side.start - 1, side.stop) for side in box), indexing="ij"), -1).reshape(-1, 3)
    there = grid.voxels(frame.points(corners))
    low = np.clip(np.floor(there.min(0)).astype(int), 0, shape)
    high = np.clip(np.ceil(there.max(0)).astype(int) + 1, low, shape)
    matrix = frame.matrix @ np.linalg.inv(grid.matrix)
    offset = frame.offset + matrix @ (low - grid.offset)
    part = affine_transform(label.view(np.uint8), matrix, offset, tuple(high - low), np.uint8, order=0)
    laid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = part
    return laid


def dense(ask: Ask, shape: tuple[int, int, int]) -> np.ndarray:
    """(X, Y, Z) float32 logits at every voxel."""
    logits = np.empty(shape, np.float32)
    for x in range(shape[0]):
        plane = np.stack(np.meshgrid([x], *(np.arange(n) for n in shape[1:]), indexing="ij"), -1)
        logits[x] = ask(plane.reshape(-1, 3)).reshape(shape[1:])
    return logits


def narrow(ask: Ask, shape: tuple[int, int, int], *, seed: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """(X, Y, Z) bool, logits above 0, asked only where the surface may be; and how many points were asked.

    From every eighth voxel or so to every one: on each lattice points are asked where the coarser one has a surface and
    where `seed` has one, and on from there until of any two neighbours that differ both were asked. A lattice is never
    searched as a whole but the seed's: time and memory, beside the two masks, go with the surface.

    Args:
        seed: (X, Y, Z) bool, a guess; parts too thin for the coarse lattice are found by it alone.
    """
    guesses = [None if seed is None else np.ascontiguousarray(seed, bool)]
    sizes = [tuple(shape)]
    while max(sizes[-1]) >= 2 * COARSEST:
        guesses.append(None if guesses[-1] is None else _halved(guesses[-1]))
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    found, known = (np.zeros(sizes[-1], bool) for _ in range(2))
    places, todo, asked = np.zeros(0, int), np.arange(found.size), 0
    for level in range(len(sizes) - 1, -1, -1):
        if level < len(sizes) - 1:
            found, known, places, todo = _finer(found, places, sizes[level])
            if guesses[level] is not None:
                more = _surface_places(guesses[level])
                todo = _sorted(todo, more[~known.ravel()[more]])
        more = _settle(ask, found, known, todo, step=2**level)
        places, asked = _sorted(places, more), asked + len(more)
    return found, asked


def _settle(ask: Ask, found: np.ndarray, known: np.ndarray, todo: np.ndarray, *, step: int) -> np.ndarray:
    """Asks on a lattice until of neighbours that differ both are known; the places that were asked.

    Args:
        found, known: (X, Y, Z) bool, the answers and where they are more than a guess; changed.
        todo: (P,) flat places to begin with.
    """
    values, sure, told = found.reshape(-1), known.reshape(-1), [np.zeros(0, int)]
    while len(todo):
        answer = ask(np.stack(np.unravel_index(todo, found.shape), 1) * step) > 0
        values[todo], sure[todo] = answer, True
        told.append(todo)
        beside = [near[(values[near] != answer) & ~sure[near]] for near in _around(todo, found.shape)]
        todo = _sorted(*beside)
    return np.concatenate(told)


def _finer(coarse: np.ndarray, places: np.ndarray, size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The next lattice: its answers as guessed, where they are known, those places, and those where a surface may be.

    Each point takes the answer of the coarse one at or before it. A surface is only where the coarse lattice was asked.

    Args:
        places: (P,) flat, where the coarse lattice is known.
    """
    found = np.zeros(size, bool)
    for rows, x, y in _filled_rows(coarse):
        for dx, dy in product((0, 1), repeat=2):
            fit = (2 * x + dx < size[0]) & (2 * y + dy < size[1])
            found[2 * x[fit] + dx, 2 * y[fit] + dy] = rows[fit].repeat(2, 1)[:, : size[2]]
    same, known = np.stack(np.unravel_index(places, coarse.shape)) * 2, np.zeros(size, bool)
    kept = np.ravel_multi_index(tuple(same), size)
    known.reshape(-1)[kept] = True
    near = same[:, _differs(coarse, places)]
    blocks = [near + np.reshape(corner, (3, 1)) for corner in product((0, 1), repeat=3)]
    inner = [block[:, (block < np.reshape(size, (3, 1))).all(0)] for block in blocks]
    todo = _sorted(*(np.ravel_multi_index(tuple(block), size) for block in inner))
    todo = todo[~known.reshape(-1)[todo]]
    return found, known, kept, todo[_differs(found, todo)]


def _around(places: np.ndarray, size: tuple[int, ...]) -> Iterator[np.ndarray]:
    """(P,) flat places of a neighbour of each, for each of the 26; at the edge of a grid a nearer one stands in."""
    strides = (size[1] * size[2], size[2], 1)
    lines = [
        [np.clip(at + way, 0, n - 1) * stride for way in (-1, 0, 1)]
        for at, n, stride in zip(np.unravel_index(places, size), size, strides, strict=True)
    ]
    for x, y, z in product(*lines):
        yield x + y + z


def _differs(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(P,) bool, whether a neighbour, of 26, has another value."""
    values = mask.reshape(-1)
    here, differs = values[places], np.zeros(len(places), bool)
    for near in _around(places, mask.shape):
        differs |= values[near] != here
    return differs


def _sorted(*places: np.ndarray) -> np.ndarray:
    """Flat places, each once; `np.unique` takes ten times as long."""
    every = np.sort(np.concatenate(places))
    return every[np.diff(every, prepend=-1) > 0]


def _surface_places(mask: np.ndarray) -> np.ndarray:
    """(P,) flat places of `_surface`, slab by slab and in the box of what lies there."""
    filled, found = mask.any(2), [np.zeros(0, int)]
    for first in range(0, len(mask), SLAB):
        low, high = max(0, first - 1), first + SLAB + 1
        rows = np.flatnonzero(filled[low:high].any(0))
        if not len(rows):
            continue
        y, end = max(0, rows[0] - 1), rows[-1] + 2
        columns = np.flatnonzero(mask[low:high, y:end].any((0, 1)))
        z = max(0, columns[0] - 1)
        part = _surface(mask[low:high, y:end, z : columns[-1] + 2])[first - low : first - low + SLAB]
        places = np.argwhere(part) + np.array([first, y, z])
        found.append(np.ravel_multi_index(tuple(places.T), mask.shape))
    return np.concatenate(found)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels with a neighbour, of 26, that differs."""
    return _spread(mask) & _spread(~mask)


def _spread(mask: np.ndarray) -> np.ndarray:
    """A mask and its 26 neighbours, axis by axis."""
    for axis in range(3):
        here, wide = np.moveaxis(mask, axis, 0), mask.copy()
        there = np.moveaxis(wide, axis, 0)
        there[1:] |= here[:-1]
        there[:-1] |= here[1:]
        mask = wide
    return mask


def _halved(mask: np.ndarray) -> np.ndarray:
    """Half as many voxels along each axis: there where anything of their eight is."""
    half = np.zeros([-(-n // 2) for n in mask.shape], bool)
    for rows, x, y in _filled_rows(mask):
        pairs = rows[:, ::2].copy()
        pairs[:, : mask.shape[2] // 2] |= rows[:, 1::2]
        for corner in range(4):  # rows of the same corner of their fours lie in different fours
            one = 2 * (x % 2) + y % 2 == corner
            half[x[one] // 2, y[one] // 2] |= pairs[one]
    return half


def _filled_rows(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The rows of a mask that hold anything, (R, Z), with their x and y, some at a time."""
    filled = np.argwhere(mask.any(2))
    for part in np.array_split(filled, -(-len(filled) // ROWS)) if len(filled) else ():
        x, y = part.T
        yield mask[x, y], x, y
