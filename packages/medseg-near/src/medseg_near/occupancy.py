"""The field of a shape on grids of points: everywhere, or only where its surface may be.

Axes: P points, X Y Z voxels. A grid of points is given by its shape and a `Frame`, from the cube to its voxels.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medseg_near.models.field import Shapes
from medseg_near.points import Frame

CHUNK = 65_536  # points at a time
COARSEST = 16  # points at least along the longest edge of the first search
Ask = Callable[[np.ndarray], np.ndarray]  # (P, 3) voxels -> (P,) float32 logits


@torch.inference_mode()
def occupancy(model: Shapes, latent: Tensor, points_mm: Tensor, picture: Tensor | None = None) -> Tensor:
    """(P,) probabilities that points are inside a shape.

    Args:
        latent: (L,) numbers, a row of `model.latents` or of a run's `latents.csv`.
        points_mm: (P, 3) from the middle of the structure's box, to the right, to anterior and to superior.
        picture: (P, 1) CT values, 0 to 1, for a model that wants them.
    """
    maps = model.decoder.maps(latent[None])
    parts = zip(
        points_mm.split(CHUNK), picture.split(CHUNK) if picture is not None else (None,) * len(points_mm), strict=False
    )
    found = [
        model.decoder.at(maps, part_mm[None] / model.half_mm, None if values is None else values[None])[0]
        for part_mm, values in parts
    ]
    return torch.cat(found).float().sigmoid()


def asking(model: Shapes, latent: Tensor, frame: Frame, picture_at: Callable | None = None) -> Ask:
    """The logits of a shape at voxels of a grid, in chunks; a point's answer does not depend on the chunk."""
    with torch.inference_mode():
        maps = model.decoder.maps(latent[None])

    @torch.inference_mode()
    def ask(voxels: np.ndarray) -> np.ndarray:
        found = []
        for part in np.array_split(voxels, max(1, -(-len(voxels) // CHUNK))):
            points = torch.from_numpy(frame.points(part.astype(float)).astype(np.float32)).to(latent.device)
            picture = None if picture_at is None else torch.from_numpy(picture_at(part)).to(latent.device)[None]
            found.append(model.decoder.at(maps, points[None], picture)[0].float().cpu().numpy())
        return np.concatenate(found)

    return ask


def cube(resolution: int) -> Frame:
    """The frame of the grid of `resolution`^3 points whose first and last are -1 and 1."""
    middle = (resolution - 1) / 2
    return Frame(np.eye(3) * middle, np.full(3, middle))


def dense(ask: Ask, shape: tuple[int, int, int]) -> np.ndarray:
    """(X, Y, Z) float32 logits at every voxel."""
    logits = np.empty(shape, np.float32)
    for x in range(shape[0]):
        plane = np.stack(np.meshgrid([x], *(np.arange(n) for n in shape[1:]), indexing="ij"), -1)
        logits[x] = ask(plane.reshape(-1, 3)).reshape(shape[1:])
    return logits


def narrow(ask: Ask, shape: tuple[int, int, int], *, seed: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """(X, Y, Z) bool, logits above 0, asked only where the surface may be; and how many points were asked.

    From every eighth voxel or so to every one: where neighbours on a coarse lattice differ, and where `seed` has a
    surface, the finer lattice is asked, and on from there as long as an answer differs from the one it replaces.

    Args:
        seed: (X, Y, Z) bool, a guess; parts too thin for the coarse lattice are found by it alone.
    """
    step = 1
    while max(shape) / (2 * step) >= COARSEST:
        step *= 2
    asked, found = 0, np.zeros((0, 0, 0), bool)
    while step:
        size = tuple(-(-n // step) for n in shape)
        todo = np.ones(size, bool) if not found.size else _finer(_surface(found), size)
        found = np.zeros(size, bool) if not found.size else _finer(found, size)
        if seed is not None:
            todo |= _surface(_thinned(seed, step, size))
        known = np.zeros(size, bool)
        while todo.any():
            at = np.argwhere(todo)
            answer = ask(at * step) > 0
            changed = np.zeros(size, bool)
            changed[todo] = answer != found[todo]
            found[todo] = answer
            known |= todo
            asked += len(at)
            todo = _spread(changed) & ~known
        step //= 2
    return found, asked


def _finer(coarse: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Each point takes the answer of the coarse one at or before it."""
    for axis, n in enumerate(size):
        coarse = coarse.take(np.arange(n) // 2, axis)
    return coarse


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


def _thinned(seed: np.ndarray, step: int, size: tuple[int, ...]) -> np.ndarray:
    """The seed on every `step`th voxel: there where anything of it lies in the block."""
    padded = np.pad(seed, [(0, n * step - m) for n, m in zip(size, seed.shape, strict=True)])
    return padded.reshape(size[0], step, size[1], step, size[2], step).any((1, 3, 5))
