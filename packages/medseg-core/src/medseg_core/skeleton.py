"""Centrelines of label maps, and centreline Dice for every label of a pair in one call.

A skeleton is what stays of a label when voxels are taken off its border as long as that changes no topology: no part
splits or vanishes, no hole or cavity comes or goes, and lines keep their ends. A label hangs together through corners
(26 neighbours, in 2D 8), its background through faces; other labels and what lies outside the array are background.

The thinning is that of Lee, Kashyap and Chu (Building skeleton models via 3-D medial surface/axis thinning algorithms,
1994), in 2D too: passes for one direction after the other until a round of them finds nothing. A pass

1. marks the voxels with background next to them in its direction that are simple and have more than one neighbour;
2. takes them away one by one, in ascending order of their index, unless they are no longer simple.

Where several skeletons are possible, the order of directions and voxels decides. Here it is scikit-image's, and so are
the voxels: those of its `skeletonize(method="lee")`. One exception: in 3D that takes some parts away wholly, such as a
cube of 4x4x4; here their last voxel stays. In 2D its default, which the authors of clDice take, is another method, that
of Zhang and Suen (1984): in pictures clDice differs from theirs by some hundredths.
"""

import math
from collections.abc import Iterable
from itertools import product

import numpy as np
from numba import njit

from medseg_core.errors import MedsegError
from medseg_core.masks import in_fortran_order, whole_ids
from medseg_core.metrics import checked_ids, checked_pair

# The 3x3x3 voxels around a voxel as bits 9x + 3y + z of a number: three neighbours along z lie side by side.
AROUND = list(product(range(3), repeat=3))
NEIGHBOURS = 2**27 - 1 - 2**13
FACES, EDGES = (sum(1 << n for n, at in enumerate(AROUND) if at.count(1) == ones) for ones in (2, 1))
FACES_AND_EDGES = FACES | EDGES
NOT_FIRST_Y, NOT_FIRST_Z = (sum(1 << n for n, at in enumerate(AROUND) if at[axis] > 0) for axis in (1, 2))
NOT_LAST_Y, NOT_LAST_Z = (sum(1 << n for n, at in enumerate(AROUND) if at[axis] < 2) for axis in (1, 2))

WORD = 64
ONE, SEVEN = np.uint64(1), np.uint64(7)
PRIME = np.uint64(67)  # divided by it, the powers of 2 below 2**64 leave rests of which no two are equal
EXPONENT = np.zeros(67, np.int64)
EXPONENT[[2**n % 67 for n in range(WORD)]] = range(WORD)
NUM_KNOWN = 2**16  # surroundings whose answer is remembered
MIXER = 0x9E3779B1  # 2**32 / golden ratio: spreads surroundings over the table (Knuth, The art of computer programming)


def skeleton(mask: np.ndarray, *, ids: Iterable[int] | None = None) -> np.ndarray:
    """The centreline of each label by itself: those of its voxels that the thinning of this module leaves.

    Args:
        mask: (X, Y, Z) or (H, W) ids, whole numbers from 0 to 65535 in any integer type or bool. One plane, (1, Y, Z),
            is thinned as a picture.
        ids: labels to thin, the others are left out; None is all.

    Returns:
        A label map of the same shape, type and memory order.

    Raises:
        MedsegError: not a label map, or an id that no label has.
    """
    volume = _volume(whole_ids(mask, "mask"))
    boxes, known = _boxes(volume), np.zeros(NUM_KNOWN, np.uint32)
    thin = np.zeros_like(np.asarray(mask))
    for i in boxes if ids is None else _labels(ids).tolist():
        if i in boxes:
            _volume(thin)[_centreline(volume, i, boxes[i], known)] = i
    return thin


def cldice(mask: np.ndarray, label: np.ndarray, *, ids: Iterable[int]) -> dict[str, np.ndarray]:
    """Centreline Dice: how well tubes agree in their course, whatever their width (clDice; Shit et al., 2021).

    Args:
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, whole numbers from 0 to 65535; types and memory orders
            may differ.
        ids: structures, (L,); 0 is not one.

    Returns:
        `topology_precision`, the share of the mask's skeleton that lies in the label, `topology_sensitivity`, the share
        of the label's skeleton that lies in the mask, and `cldice`, their harmonic mean; each (L,) float64 in [0, 1] in
        the order of `ids`. A structure that is `missed` has no precision (nan), one that is `invented` no sensitivity,
        and 0 for the rest; one on neither side has nan alone (see the table of `medseg_core.metrics`).

    Raises:
        MedsegError: arrays of different shape, not label maps, or an id that no label has.
    """
    sides = [_volume(side) for side in checked_pair(mask, label)]
    chosen, known = _labels(ids), np.zeros(NUM_KNOWN, np.uint32)
    shares = np.full((2, len(chosen)), np.nan)
    for share, side, other in zip(shares, sides, sides[::-1], strict=True):
        boxes = _boxes(side)
        for place, i in enumerate(chosen.tolist()):
            if i in boxes:
                share[place] = np.mean(other[_centreline(side, i, boxes[i], known)] == i)
    precision, sensitivity = shares
    total = np.nansum(shares, axis=0)
    both = np.divide(2 * precision * sensitivity, total, out=np.zeros_like(total), where=total > 0)
    both[np.isnan(shares).all(axis=0)] = np.nan
    return {"cldice": both, "topology_precision": precision, "topology_sensitivity": sensitivity}


def _labels(ids: Iterable[int]) -> np.ndarray:
    chosen = checked_ids(ids)
    if (chosen == 0).any():
        raise MedsegError("id 0 is the background, which has no centreline of its own; leave it out of ids")
    return chosen


def _volume(array: np.ndarray) -> np.ndarray:
    """A view with three axes, of which a picture's first has length 1."""
    return array[None] if array.ndim == 2 else array


def _boxes(volume: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Label -> the box around it, in ascending order."""
    turned = in_fortran_order(volume)
    first = np.full((int(volume.max(initial=0)) + 1, 3), max(volume.shape))
    last = np.full_like(first, -1)
    _bound(volume.T if turned else volume, first, last)
    labels = np.flatnonzero(last[:, 0] >= 0)
    ends = np.stack([first, last + 1], axis=2)[labels][:, :: -1 if turned else 1].tolist()
    return {i: tuple(slice(*side) for side in sides) for i, sides in zip(labels.tolist(), ends, strict=True)}


def _centreline(volume: np.ndarray, i: int, box: tuple[slice, ...], known: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where the skeleton of a label lies: the three indices of each of its voxels.

    Args:
        volume: (X, Y, Z) unsigned ids.
        known: (NUM_KNOWN,) uint32 of zeros, or from another label: it makes the next one faster.
    """
    shape = tuple(side.stop - side.start + 2 for side in box)
    x, y, z = steps = shape[1] * shape[2], shape[2], 1
    left = np.zeros(math.prod(shape) // WORD + 4, np.uint64)
    if in_fortran_order(volume):
        _put(volume.T[box[::-1]], i, steps[::-1], left)
    else:
        _put(volume[box], i, steps, left)
    directions = np.array([-y, y, z, -z, x, -x][: 4 if len(volume) == 1 else 6])
    _thin(left, steps, directions, known)
    words = np.flatnonzero(left)
    row, bit = np.nonzero(np.unpackbits(left[words, None].astype("<u8").view(np.uint8), axis=1, bitorder="little"))
    inside = np.unravel_index((words[row] - 1) * WORD + bit, shape)
    return tuple(at + side.start - 1 for at, side in zip(inside, box, strict=True))


@njit(nogil=True, cache=True)
def _bound(volume, first, last):
    """Widens the bounds (L, 3) of each label, run by run."""
    n0, n1, n2 = volume.shape
    for x in range(n0):
        for y in range(n1):
            row = volume[x, y]
            z = 0
            while z < n2:
                i, start = row[z], z
                while z < n2 and row[z] == i:
                    z += 1
                if i:
                    first[i, 0], last[i, 0] = min(first[i, 0], x), max(last[i, 0], x)
                    first[i, 1], last[i, 1] = min(first[i, 1], y), max(last[i, 1], y)
                    first[i, 2], last[i, 2] = min(first[i, 2], start), max(last[i, 2], z - 1)


@njit(nogil=True, cache=True)
def _put(part, i, steps, left):
    """Sets the bits of a label in `left`, as `_thin` wants them; `steps` are those of the axes of `part`."""
    n0, n1, n2 = part.shape
    for x in range(n0):
        for y in range(n1):
            row = part[x, y]
            start = WORD + (x + 1) * steps[0] + (y + 1) * steps[1] + steps[2]
            for z in range(n2):
                if row[z] == i:
                    n = start + z * steps[2]
                    left[n // WORD] |= ONE << np.uint64(n % WORD)


@njit(nogil=True, cache=True)
def _thin(left, steps, directions, known):
    """Thins one object in place.

    A voxel is looked at only while it is due: until it is found that it must stay as things are, and again after a
    neighbour was taken away.

    Args:
        left: (W,) uint64, the object as bits, n % 64 of word n // 64. The first word is empty; then comes the raveled
            box with an empty margin of one voxel, then at least one more empty word.
        steps: from a voxel to the next one along each axis.
        directions: steps to where there has to be background, in the order of the passes.
        known: what `_is_simple` remembers.
    """
    due, marked = left.copy(), np.zeros_like(left)
    changed = True
    while changed:
        changed = False
        for direction in directions:
            for word in range(len(left)):
                bits = due[word] & left[word]
                if bits:
                    bits &= ~_bits_from(left, word * WORD + direction)
                while bits:
                    bit = bits & (~bits + ONE)
                    bits ^= bit
                    around = _around(left, word * WORD + EXPONENT[bit % PRIME], steps)
                    is_end = around & (around - 1) == 0
                    if is_end or not _is_simple(around, known):
                        due[word] ^= bit
                    else:
                        marked[word] |= bit
            for word in range(len(left)):
                while marked[word]:
                    bit = marked[word] & (~marked[word] + ONE)
                    marked[word] ^= bit
                    due[word] ^= bit
                    n = word * WORD + EXPONENT[bit % PRIME]
                    if _is_simple(_around(left, n, steps), known):
                        left[word] ^= bit
                        _make_due(due, n, steps)
                        changed = True


# These three are inlined, as their calls would take a seventh of the time.
@njit(nogil=True, cache=True, inline="always")
def _bits_from(words, n):
    """64 bits from the n-th on."""
    word, shift = n // WORD, np.uint64(n % WORD)
    return words[word] >> shift | words[word + 1] << ONE << (np.uint64(WORD - 1) - shift)


@njit(nogil=True, cache=True, inline="always")
def _around(left, n, steps):
    """The 26 neighbours of a voxel, as bits of AROUND."""
    bits = 0
    first = n - steps[0] - steps[1] - steps[2]
    for x in range(3):
        for y in range(3):
            row = _bits_from(left, first + x * steps[0] + y * steps[1])
            bits |= np.int64(row & SEVEN) << (9 * x + 3 * y)
    return bits & NEIGHBOURS


@njit(nogil=True, cache=True, inline="always")
def _make_due(due, n, steps):
    """The voxel and its neighbours, whether there are any or not."""
    first = n - steps[0] - steps[1] - steps[2]
    for x in range(3):
        for y in range(3):
            at = first + x * steps[0] + y * steps[1]
            word, shift = at // WORD, np.uint64(at % WORD)
            due[word] |= SEVEN << shift
            due[word + 1] |= SEVEN >> ONE >> (np.uint64(WORD - 1) - shift)


@njit(nogil=True, cache=True)
def _is_simple(around, known):
    """Whether the voxel with these neighbours can go without a change of topology.

    It can where they are one part, through corners, and the background at its faces is one part too, through faces of
    voxels at its faces and edges (Bertrand and Malandain, A new characterization of three-dimensional simple points,
    1994). With one part of the object, the latter is what Lee's unchanged Euler characteristic says.
    """
    place = (around * MIXER >> 16) % NUM_KNOWN
    if known[place] >> 1 != around:
        known[place] = 2 * around + (_is_one_part(around) and _has_one_outside(around))
    return known[place] & 1 == 1


@njit(nogil=True, cache=True)
def _is_one_part(around):
    part, before = around & -around, 0
    while part != before:
        before = part
        part |= (part & NOT_LAST_Z) << 1 | (part & NOT_FIRST_Z) >> 1
        part |= (part & NOT_LAST_Y) << 3 | (part & NOT_FIRST_Y) >> 3
        part = (part | part << 9 | part >> 9) & around
    return part == around and around != 0


@njit(nogil=True, cache=True)
def _has_one_outside(around):
    outside = ~around & FACES_AND_EDGES
    faces = outside & FACES
    part, before = faces & -faces, 0
    while part != before:
        before = part
        grown = part << 9 | part >> 9
        grown |= (part & NOT_LAST_Y) << 3 | (part & NOT_FIRST_Y) >> 3
        grown |= (part & NOT_LAST_Z) << 1 | (part & NOT_FIRST_Z) >> 1
        part |= grown & outside
    return part & FACES == faces and faces != 0
