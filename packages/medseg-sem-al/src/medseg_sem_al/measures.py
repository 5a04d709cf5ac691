"""What is told of a micrograph's structure: shares, particles, cracks, contacts, and how sure a share is.

A mask is (H, W) uint8 of ids 0 to K-1; 255 was not looked at, such as an instrument's banner, and counts nowhere. What
comes back are rows for a CSV. Where `pixel_nm` is known lengths are in um, else in px, and the key says which
(`area_um2`, `area_px2`).

Boundaries are measured by their crossings with four sets of parallel lines through the centres of the pixels: along
rows, columns and both diagonals (the formula of Cauchy and Crofton; Legland, Kieu and Devaux, Computation of Minkowski
measures on 2D and 3D binary images, 2007). For boundaries of all directions alike that has no bias, where the count of
pixel edges is 4/pi of the length. A straight one is -5.2 % (along an axis or diagonal) to +2.6 % (between them) off.
A disc of a radius of 4 pixels has its perimeter within 1 %; where discs overlap at random narrow gaps are lost, with a
radius of 4 pixels 6 %, of 8 pixels 4 %, of 16 pixels 3 % (benchmarks/measures.py prints these and the numbers below).
The border of the picture is no boundary.

A particle is a connected part of one class, through corners too, so that two classes can cross. All of it is seen in a
cut: sizes are those of sections, and no correction to three dimensions is made.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.special import expit, logit, stdtrit

from medseg_core.errors import MedsegError
from medseg_core.intervals import NUM_RESAMPLES
from medseg_core.masks import components
from medseg_core.skeleton import skeleton
from medseg_sem_al.colours import UNSEEN

LEAST = 10  # pixels of a particle: a circle of fewer is under 3.6 pixels wide, and is a speck as likely as a particle
SLENDER = 3.0  # times as long as wide
ROUGH = 1.15  # of the perimeter that a ribbon of that length and width has
NUM_DIRECTIONS = 180  # in which an extent is measured: the longest is short by 1 - cos(0.5 deg) = 4e-5 at most
SIDE, CORNER, TURN = 0.980, 1.406, -0.091  # of a digital line: see `_lengths`
FIRST, LAST, ALL = slice(None, -1), slice(1, None), slice(None)
BESIDE = (((ALL, FIRST), (ALL, LAST)), ((FIRST, ALL), (LAST, ALL)))  # a pixel and its neighbour along rows, columns
ACROSS = (((FIRST, FIRST), (LAST, LAST)), ((FIRST, LAST), (LAST, FIRST)))  # along both diagonals
LINES = (*BESIDE, *ACROSS)
STEPS = np.sqrt([1.0, 1.0, 2.0, 2.0])  # pixels from one to the other


def phases(
    mask: np.ndarray, names: Sequence[str], *, pixel_nm: float | None, least: int = LEAST
) -> list[dict[str, Any]]:
    """A row for each class, also for one that is not there.

    Args:
        least: pixels of a particle, as in `particles`; area and share count smaller ones too.

    Returns:
        `class`; `share` of the pixels that were looked at; `area`; `num_particles`, the cut ones too;
        `boundary_per_um`, the length of its boundary per area that was looked at, in um/um2 (L_A; the surface per
        volume of an isotropic structure is 4/pi of it). It is crossings per length of the lines, and these end at
        centres of pixels: it is more than the lengths of `contacts` over the area, by 1/H + 1/W about. nan where no
        pixel has a neighbour in one of the directions.

    Raises:
        MedsegError: no mask as above, an id without a name, no pixel looked at, or a `pixel_nm` or `least` of 0.
    """
    edge, unit = _checked(mask, names, pixel_nm)
    areas = np.bincount(mask.ravel(), minlength=256)[: len(names)]
    _, kinds, _ = _particles(mask, least)
    nums = np.bincount(kinds[1:], minlength=len(names))
    crossings, pairs = _crossings(mask, len(names))
    lines = (pairs * STEPS)[:, None]
    crossed = np.divide(crossings.sum(2), lines, out=np.full((4, len(names)), np.nan), where=lines > 0)
    per_length = np.pi / 2 * crossed.mean(0) / edge
    return [
        {
            "class": name,
            "share": float(areas[i] / areas.sum()),
            f"area_{unit}2": float(areas[i] * edge**2),
            "num_particles": int(nums[i]),
            f"boundary_per_{unit}": float(per_length[i]),
        }
        for i, name in enumerate(names)
    ]


def particles(
    mask: np.ndarray, names: Sequence[str], *, pixel_nm: float | None, least: int = LEAST
) -> list[dict[str, Any]]:
    """A row for each particle, by class, the largest first.

    A particle that is cut has lower bounds for sizes. To leave them out favours small ones, as large ones are cut more
    often; to keep them makes large ones too small: say which was done.

    Args:
        least: pixels; smaller particles are left out.

    Returns:
        `class`; `row` and `column` of its centre of mass, in pixels from 0 on; `area`; `ecd`, the diameter of the
        circle of that area; `cut`, whether it touches the border of the picture or a pixel not looked at; `perimeter`,
        of holes too, and along where it is cut; `extent`, the longest width (Feret) of the convex hull of the middles
        of its pixels' edges: n for a row of n pixels; `length` along the skeleton, of all branches; `width`, area over
        length. The last two are nan for what is not 3 times as long as wide, and where a ribbon of that length and
        width would have over 1.15 times the perimeter: there the rough border of a blob gave the skeleton branches.

        A skeleton stops half a width before an end. So with S its length, e its ends and A the area, the length is
        L = S + e width / 2, hence L = (S + sqrt(S^2 + 2 e A)) / 2. On drawn bars 3 to 20 pixels wide neither has a
        bias; single lengths are within 5 %, single widths within 0.8 pixels, at any angle. Of a border that is rough
        by a pixel come spurs: L is 5 to 10 % too long then. (Twice the distance transform, the other common width, goes
        from centre to centre of pixels and misses by up to one, as the width is odd or even.)

    Raises:
        MedsegError: as `phases`.
    """
    edge, unit = _checked(mask, names, pixel_nm)
    parts, kinds, areas = _particles(mask, least)
    num = len(kinds)
    cut = np.zeros(num, bool)
    cut[parts[_brink(mask)]] = True
    centres, extents, perimeters = _centres(parts, areas), _extents(parts, num), _perimeters(parts, num)
    thin = np.where(skeleton(np.where(parts > 0, mask + np.uint8(1), 0).astype(np.uint8)) > 0, parts, 0)
    lengths, ends = _lengths(thin, num)
    lengths = (lengths + np.sqrt(lengths**2 + 2 * ends * areas)) / 2
    widths = np.divide(areas, lengths, out=np.full(num, np.nan), where=lengths > 0)
    around = lengths + np.minimum(ends, 2) / 2 * widths
    blunt = ~(lengths >= SLENDER * widths) | (around > ROUGH * perimeters / 2)
    lengths[blunt] = widths[blunt] = np.nan
    return [
        {
            "class": names[kinds[i]],
            "row": float(centres[0, i]),
            "column": float(centres[1, i]),
            f"area_{unit}2": float(areas[i] * edge**2),
            f"ecd_{unit}": float(2 * np.sqrt(areas[i] / np.pi) * edge),
            "cut": bool(cut[i]),
            f"perimeter_{unit}": float(perimeters[i] * edge),
            f"extent_{unit}": float(extents[i] * edge),
            f"length_{unit}": float(lengths[i] * edge),
            f"width_{unit}": float(widths[i] * edge),
        }
        for i in (np.lexsort((-areas[1:], kinds[1:])) + 1).tolist()
    ]


def contacts(mask: np.ndarray, names: Sequence[str], *, pixel_nm: float | None) -> list[dict[str, Any]]:
    """A row for each two classes that touch, through corners too.

    Returns:
        `class` and `other`, in the order of ids; `length` of their common boundary; `share_of_class` and
        `share_of_other`: how much that is of the whole boundary of each.

    Raises:
        MedsegError: as `phases`.
    """
    edge, unit = _checked(mask, names, pixel_nm)
    crossings, _ = _crossings(mask, len(names))
    # Half the integral over the lines' directions, pi/4 apart, of crossings times the distance between lines.
    lengths = np.pi / 8 * (crossings / STEPS[:, None, None]).sum(0)
    whole = lengths.sum(0)
    return [
        {
            "class": names[i],
            "other": names[j],
            f"length_{unit}": float(lengths[i, j] * edge),
            "share_of_class": float(lengths[i, j] / whole[i]),
            "share_of_other": float(lengths[i, j] / whole[j]),
        }
        for i, j in np.argwhere(np.triu(lengths) > 0).tolist()
    ]


def fraction_interval(
    shares: np.ndarray, areas: np.ndarray, *, names: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """Shares over several images, weighted by area, with bootstrap intervals: whole images are drawn.

    As `medseg_core.intervals` does it for means. With few images they are too short: in simulations those of 3 images
    hold the truth in 75 %, of 5 in 83 %, of 10 in 91 %. Images of one sample say nothing of another sample.

    Args:
        shares: (N, K) of each image.
        areas: (N,), in any one unit.

    Returns:
        For each class: `class`, `num_images`, `share`, `low` and `high` of the 95 % interval, nan for one image.

    Raises:
        MedsegError: no images, shapes that do not fit, or an area that is not positive.
    """
    shares, areas = np.asarray(shares, np.float64), np.asarray(areas, np.float64)
    if not len(areas) or shares.shape != (len(areas), len(names)):
        raise MedsegError(f"shares {shares.shape} must be ({areas.size}, {len(names)}), a row for each area")
    if not (areas > 0).all():
        raise MedsegError(f"an area is {areas.min():g}; leave images out of which nothing was looked at")
    num = len(areas)
    drawn = np.random.default_rng([seed, 0, 0, 0]).multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES) * areas
    means = drawn @ shares / drawn.sum(1, keepdims=True)
    ends = np.percentile(means, (2.5, 97.5), axis=0) if num > 1 else np.full((2, len(names)), np.nan)
    return [
        {"class": name, "num_images": num, "share": float(mean), "low": float(low), "high": float(high)}
        for name, mean, low, high in zip(names, areas @ shares / areas.sum(), *ends, strict=True)
    ]


def interval_within(mask: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """How well one picture knows the shares of a homogeneous structure of which it is a window.

    The variance of a share is the covariance of the class at two pixels, averaged over all pairs of pixels (Ohser and
    Muecklich, Statistical analysis of microstructures in materials science, 2000); `_variance` says how it is known.
    As neighbours say the same, it is far larger than that of as many coins.

    In simulations of discs (Boolean model) the interval holds the truth in 92 to 96 % of pictures, up to discs of 60 %
    of the picture's edge; in 80 % where they are as wide as the picture. It knows nothing of what the picture does not
    show: of gradients, layers, other places. Between pictures of a sample, `fraction_interval` is the honest one.

    Returns:
        For each class: `class`; `share`; `low` and `high` of the 95 % interval, symmetric in the logit and with
        Student's t of `num_points` - 1; `num_points`: so many independent points would know the share as well. All but
        the share are nan for a class that is nowhere or everywhere.

    Raises:
        MedsegError: as `phases`.
    """
    _checked(mask, names, None)
    seen = mask != UNSEEN
    far = min(mask.shape) // 2
    y = np.arange(-far, far + 1)
    rings = np.minimum(np.rint(np.hypot(y[:, None], y)), far + 1).astype(int).ravel()
    pairs = np.bincount(rings, _products(seen, far).ravel())[: far + 1]
    rows = []
    for i, name in enumerate(names):
        share = float((mask == i).sum() / seen.sum())
        low = high = num = np.nan
        if 0 < share < 1:
            products = np.bincount(rings, _products(np.where(seen, (mask == i) - share, 0), far).ravel())[: far + 1]
            num = share * (1 - share) / _variance(products, pairs, int(seen.sum()))
            reach = stdtrit(max(num - 1, 1), 0.975) / np.sqrt(num * share * (1 - share))
            low, high = expit(logit(share) + reach * np.array([-1, 1]))
        rows.append({"class": name, "share": share, "low": float(low), "high": float(high), "num_points": float(num)})
    return rows


def _checked(mask: np.ndarray, names: Sequence[str], pixel_nm: float | None) -> tuple[float, str]:
    """The edge of a pixel and its unit."""
    if mask.ndim != 2 or mask.dtype != np.uint8 or min(mask.shape) < 2:
        raise MedsegError(f"mask is {mask.dtype} of shape {mask.shape}; it must be uint8 (H, W) of at least 2 by 2")
    most = int(np.max(mask, where=mask != UNSEEN, initial=0))
    if most >= len(names):
        raise MedsegError(f"mask holds the id {most} and there are {len(names)} names; name them all, or set it to 255")
    if len(names) > UNSEEN:
        raise MedsegError(f"there are {len(names)} names; a mask has {UNSEEN} classes at most")
    if (mask == UNSEEN).all():
        raise MedsegError("no pixel of the mask was looked at: all are 255; leave this image out")
    if pixel_nm is not None and not 0 < pixel_nm < np.inf:
        raise MedsegError(f"pixel_nm={pixel_nm} must be positive; take None where it is not known")
    return (1.0, "px") if pixel_nm is None else (pixel_nm / 1000, "um")


def _crossings(mask: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of two classes, (4, K, K) and symmetric with nothing between equals, and of any, (4,)."""
    ids = np.minimum(mask, num).astype(np.int32)
    tables = np.array([np.bincount((ids[a] * (num + 1) + ids[b]).ravel(), minlength=(num + 1) ** 2) for a, b in LINES])
    tables = tables.reshape(4, num + 1, num + 1)[:, :num, :num]
    between = tables + tables.transpose(0, 2, 1)
    between[:, np.arange(num), np.arange(num)] = 0
    return between, tables.sum((1, 2))


def _particles(mask: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (H, W) of the P particles from 1 on, 0 elsewhere; classes and pixels (P + 1,) of each."""
    if least < 1:
        raise MedsegError(f"least={least} must be 1 or more pixels; take 1 to keep every particle")
    parts = components(mask + np.uint8(1))  # 255 becomes 0
    areas = np.bincount(parts.ravel())
    kept = areas >= least
    kept[0] = False
    numbers = np.cumsum(kept, dtype=np.int32) * kept
    kinds = np.zeros(len(areas), np.int64)
    kinds[parts.ravel()] = mask.ravel()
    return numbers[parts], np.append(0, kinds[kept]), np.append(0, areas[kept])


def _brink(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: at the border of the picture, or beside a pixel that was not looked at."""
    unseen = np.pad(mask == UNSEEN, 1, constant_values=True)
    return binary_dilation(unseen, np.ones((3, 3)))[1:-1, 1:-1]


def _centres(parts: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(2, P + 1) mean rows and columns; of no use at 0."""
    flat = parts.ravel()
    sums = [
        np.bincount(flat, np.broadcast_to(at, parts.shape).ravel(), len(areas))
        for at in np.indices(parts.shape, sparse=True)
    ]
    return np.array(sums) / np.maximum(areas, 1)


def _perimeters(parts: np.ndarray, num: int) -> np.ndarray:
    """(num,); beyond the picture there is no particle."""
    framed, total = np.pad(parts, 1), np.zeros(num)
    for (a, b), step in zip(LINES, STEPS, strict=True):
        crossed = framed[a] != framed[b]
        for side in (a, b):
            total += np.bincount(framed[side][crossed], minlength=num) / step
    return np.pi / 8 * total


def _extents(parts: np.ndarray, num: int) -> np.ndarray:
    """(num,) longest widths, from the ends of the runs along rows."""
    framed = np.pad(parts, ((0, 0), (1, 1)))
    begins, stops = ((framed[:, 1:-1] != framed[:, side]) & (parts > 0) for side in (slice(None, -2), slice(2, None)))
    (row, begin), (_, stop) = np.nonzero(begins), np.nonzero(stops)
    order = np.argsort(parts[row, begin], kind="stable")
    row, begin, stop = (part[order].astype(np.float64) for part in (row, begin, stop))
    ids, first = np.unique(parts[begins][order], return_index=True)
    longest = np.zeros(num)
    for angle in np.arange(NUM_DIRECTIONS) * np.pi / NUM_DIRECTIONS if len(ids) else ():
        c, s = np.cos(angle), np.sin(angle)
        far, near = (c * stop, c * begin) if c > 0 else (c * begin, c * stop)
        reach = np.maximum.reduceat(far + s * row, first) - np.minimum.reduceat(near + s * row, first)
        longest[ids] = np.maximum(longest[ids], reach + max(abs(c), abs(s)))  # half a pixel's diamond on either side
    return longest


def _lengths(thin: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and ends (num,) of skeletons, given as (H, W) numbers of particles.

    Links through sides, through corners where no side leads there, and turns from one to the other weigh what has no
    bias for straight lines of any direction (Vossepoel and Smeulders, Vector code probability and metrication error in
    the representation of straight lines of finite length, 1982).
    """
    sides, corners = np.zeros((2, *thin.shape), np.uint8)
    for a, b in BESIDE:
        linked = (thin[a] == thin[b]) & (thin[a] > 0)
        sides[a] += linked
        sides[b] += linked
    for (a, b), others in zip(ACROSS, ACROSS[::-1], strict=True):
        linked = (thin[a] == thin[b]) & (thin[a] > 0)
        for other in others:
            linked &= thin[other] != thin[a]
        corners[a] += linked
        corners[b] += linked
    there = thin > 0
    part, sides, corners = thin[there], sides[there], corners[there]
    lengths = SIDE * sides / 2 + CORNER * corners / 2 + TURN * ((sides == 1) & (corners == 1))
    ends = np.maximum(2 - sides.astype(int) - corners, 0)
    return np.bincount(part, lengths, num), np.bincount(part, ends, num)


def _products(values: np.ndarray, far: int) -> np.ndarray:
    """Sums of the products of two pixels with each lag between, (2 far + 1, 2 far + 1), by Fourier transform."""
    size = [edge + far for edge in values.shape]
    sums = np.fft.irfft2(np.abs(np.fft.rfft2(values, size)) ** 2, size)
    lags = np.arange(-far, far + 1)
    return sums[np.ix_(lags, lags)]


def _variance(products: np.ndarray, pairs: np.ndarray, area: int) -> float:
    """Of a share, from sums over the pairs of pixels at each distance (R,), with the share taken off.

    All pairs add up to 0, as the share is that of the same picture: the sum must end where structure ends. Also, each
    covariance is short by the variance that is sought, V. So the sum S up to a distance, over a part G of all pairs,
    says V = S / (1 - G), and ends before covariance + V is not positive, at half of all pairs at the latest.
    """
    part = np.cumsum(pairs) / area**2
    num = max(1, int(np.searchsorted(part, 0.5)))
    variance = np.cumsum(products[:num]) / area**2 / (1 - part[:num])
    covariance = np.divide(products[:num], pairs[:num], out=np.zeros(num), where=pairs[:num] > 0.5)
    ended = np.flatnonzero(covariance + variance <= 0)
    return float(variance[ended[0] - 1 if len(ended) else -1])
