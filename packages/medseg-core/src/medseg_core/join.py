"""One label map of many binary masks: inflated in pieces that stay in the cache, zeros skipped by the word."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.nifti import PIECE, Header, Stream, fill, opened, scaled

CLOSE = 1e-3  # of a scaled value to 0 or 1: slopes such as 1/255 are kept in float32


@dataclass(frozen=True, eq=False)
class Joined:
    """Masks as label maps, and what overlaps.

    Args:
        layers: (X, Y, Z) uint8, or uint16 for ids above 255, in Fortran order as files are. Layer 0 holds the largest
            id of each voxel, layer 1 the next, and so on; there is always one, and no empty ones after it.
        voxels: of each mask, overlaps included; 0 for an empty one.
        overlaps: voxels shared by two masks, by (smaller id, larger id); pairs without any are left out.
    """

    layers: tuple[np.ndarray, ...]
    voxels: dict[int, int]
    overlaps: dict[tuple[int, int], int]


def join_masks(files: Mapping[int, Path], grid: Grid) -> Joined:
    """One label map of binary masks, one .nii.gz or .nii file an id.

    Any integer or float dtype is taken and a slope or intercept is honoured, but values must be 0 or 1.

    Args:
        files: by id, 1 to 65535.
        grid: where all of them must lie, the image's; see `Grid.differs` for the tolerance.

    Raises:
        MedsegError: a file on another grid, with another value (which is shown), or unreadable; it is named.
    """
    wrong = [number for number in files if not 1 <= number < 2**16]
    if wrong:
        raise MedsegError(f"label ids run from 1 to 65535, got {wrong[0]} for {files[wrong[0]]}")
    dtype = np.uint8 if max(files, default=0) < 2**8 else np.uint16
    layers = [np.zeros(int(np.prod(grid.shape)), dtype)]
    voxels: dict[int, int] = {}
    overlaps: dict[tuple[int, int], int] = {}
    buffer, shared = np.empty(PIECE // 8, np.uint64), np.empty(PIECE, np.int64)
    for number in sorted(files):
        with opened(files[number]) as (header, stream):
            reason = grid.differs(header.grid())
            if reason:
                raise MedsegError(f"{header.path} does not lie on its image's grid: {reason}; resample or remove it")
            voxels[number] = _add(header, stream, number, layers, overlaps, buffer=buffer, shared=shared)
    return Joined(tuple(flat.reshape(grid.shape, order="F") for flat in layers), voxels, overlaps)


def _add(
    header: Header,
    stream: Stream,
    number: int,
    layers: list[np.ndarray],
    overlaps: dict[tuple[int, int], int],
    *,
    buffer: np.ndarray,
    shared: np.ndarray,
) -> int:
    """Writes one mask's id into the layers and counts its voxels; ids come in ascending order."""
    native = header.dtype.newbyteorder("=")
    unsigned = np.dtype(f"u{native.itemsize}")
    one = np.ones(1, native).view(unsigned)[0]
    minus = np.array([-0.0], native).view(unsigned)[0]
    total, per_piece = 0, PIECE // native.itemsize
    for start in range(0, len(layers[0]), per_piece):
        at = layers[0][start : start + per_piece]
        piece = buffer.view(native)[: len(at)]
        fill(header, stream, piece)
        if not header.dtype.isnative:
            piece.byteswap(inplace=True)
        if header.scaled:
            piece[:] = _ones(header, piece)
        num, num_shared, wrong = _mark(buffer, piece.view(unsigned), one, minus, number, at, shared)
        if wrong >= 0:
            raise _not_binary(header, piece[wrong])
        total += num
        _stack(layers, start + shared[:num_shared], number, overlaps)
    stream.read(1)  # the checksum stands after the last voxel
    return total


def _ones(header: Header, piece: np.ndarray) -> np.ndarray:
    values = scaled(header, piece)
    ones = np.abs(values - 1) < CLOSE
    wrong = ~(ones | (np.abs(values) < CLOSE))
    if wrong.any():
        raise _not_binary(header, values[wrong][0])
    return ones


def _not_binary(header: Header, value: np.generic) -> MedsegError:
    return MedsegError(
        f"{header.path} holds the value {value:g} where a mask has 0 and 1; "
        "write each structure into a file of its own, or set what belongs to it to 1"
    )


def _stack(layers: list[np.ndarray], at: np.ndarray, number: int, overlaps: dict[tuple[int, int], int]) -> None:
    """Puts `number` on top of the smaller ids at these voxels, each of which moves one layer on, and counts them."""
    carried: np.ndarray | int = number
    for depth in itertools.count():
        if not at.size:
            return
        if depth == len(layers):
            layers.append(np.zeros_like(layers[0]))
        below = layers[depth][at]
        layers[depth][at] = carried
        for other, num in enumerate(np.bincount(below)):
            if other and num:
                overlaps[other, number] = overlaps.get((other, number), 0) + int(num)
        at, carried = at[below > 0], below[below > 0]


@njit(nogil=True, cache=True)
def _mark(words, bits, one, minus, number, layer, shared):
    """Writes `number` where a mask is 1 and nothing was before; lists where something was.

    Args:
        words: (W,) uint64, the memory of `bits`, looked through for zeros.
        bits: (V,) values as unsigned integers of their width; 0 and `minus` (a negative zero) are background.

    Returns:
        Voxels of the mask, how many of them are listed in `shared`, and the index of a wrong value or -1.
    """
    num = num_shared = 0
    per_word = 8 // bits.itemsize
    num_words, w = (len(bits) + per_word - 1) // per_word, 0
    while w < num_words:
        while w + 4 <= num_words and words[w] | words[w + 1] | words[w + 2] | words[w + 3] == 0:
            w += 4
        first = w * per_word
        w += 1
        if w > num_words or words[w - 1] == 0:
            continue
        for i in range(first, min(first + per_word, len(bits))):
            if bits[i] == 0 or bits[i] == minus:
                continue
            if bits[i] != one:
                return num, num_shared, i
            num += 1
            if layer[i] == 0:
                layer[i] = number
            else:
                shared[num_shared] = i
                num_shared += 1
    return num, num_shared, -1
