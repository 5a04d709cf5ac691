"""A micrograph as numbers: grey, without the instrument's banner, and what is told of it. Axes: H W of a picture."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.alike import shrunk
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture
from medseg_sem_al.colours import Code, counted

EDGE = 32  # of the means that describe a picture
FLAT_ROW, BUSY_ROW = 0.5, 0.3  # share of a row that its commonest value takes: in a banner, and in a picture
BANNER = (12, 0.25)  # rows, and share of the picture: no banner is smaller, none is larger


@dataclass(frozen=True)
class Seen:
    """What is told of an image and its mask.

    Args:
        size: (H, W) without the banner.
        banner: rows that were cut at the foot.
        pixel_nm: where the file states it.
        has_colours: whether the channels of the image differ.
        sums: of the values in [0, 1] and of their squares.
        codes: of the mask, pixel counts; None without a mask.
        described: (1024,) means of blocks, of mean 0 and deviation 1; all 0 for a flat picture.
    """

    size: tuple[int, int]
    banner: int
    pixel_nm: float | None
    has_colours: bool
    sums: tuple[float, float]
    codes: Counter[Code] | None
    described: np.ndarray


def read_grey(path: Path) -> tuple[np.ndarray, float | None, bool]:
    """(H, W) float32, whole numbers scaled so that the largest of their type is 1; pixel_nm; whether it had colours.

    Raises:
        MedsegError: no picture, or numbers below 0, above 65535, or of floats not from 0 to 1.
    """
    picture = read_picture(path)
    pixels, has_colours = picture.pixels, False
    if pixels.ndim == 3:
        channels = pixels[..., : 1 if pixels.shape[2] < 3 else 3]
        has_colours = bool((channels != channels[..., :1]).any())
        pixels = channels.mean(2, dtype=np.float32).astype(np.float32) if has_colours else channels[..., 0]
        pixels = pixels / np.float32(255) if has_colours else pixels
    if pixels.dtype.kind in "iu":
        most = 255 if pixels.dtype.itemsize == 1 else 65535
        pixels = pixels.astype(np.float32) / np.float32(most)
    if not np.isfinite(pixels).all():
        raise MedsegError(f"{path} holds values that are not finite; save it again")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        said = "is below 0" if low < 0 else "is above the white of its kind (65535, or 1 of floats)"
        raise MedsegError(f"{path} holds a value that {said}; save it as 8 bits, in ImageJ by Image > Type > 8-bit")
    return pixels.astype(np.float32, copy=False), picture.pixel_nm, has_colours


def see(image: Path, mask: Path | None, *, banner: int) -> Seen:
    """What is told of an image and its mask.

    Args:
        banner: rows to cut at the foot; -1 finds them.

    Raises:
        MedsegError: unreadable, or a mask of another size.
    """
    grey, pixel_nm, has_colours = read_grey(image)
    cut = banner_of(grey) if banner < 0 else banner
    if cut >= len(grey):
        raise MedsegError(f"{image} has {len(grey)} rows, and {cut} are to be cut; set --banner")
    grey = grey[: len(grey) - cut]
    codes = None
    if mask is not None:
        codes = counted(read_mask(mask, grey.shape, cut))
    means = shrunk(grey, EDGE).ravel()
    spread = float(means.std())
    described = (means - means.mean()) / spread if spread > 1e-4 else np.zeros_like(means)
    sums = (float(grey.sum(dtype=np.float64)), float(np.square(grey, dtype=np.float64).sum()))
    size = (grey.shape[0], grey.shape[1])
    return Seen(size, cut, pixel_nm, has_colours, sums, codes, described.astype(np.float32))


def read_mask(path: Path, size: tuple[int, ...], banner: int) -> np.ndarray:
    """Pixels of a mask as stored, (H, W) or (H, W, C), without the banner.

    Args:
        size: (H, W) of the image without its banner; the mask may have been drawn with the banner or without.

    Raises:
        MedsegError: unreadable, or of another size.
    """
    pixels = read_picture(path).pixels
    if pixels.shape[:2] == (size[0] + banner, size[1]):
        return pixels[: size[0]]
    if pixels.shape[:2] != size[:2]:
        said = f"{path} is {_by(pixels.shape)} and its image {_by((size[0] + banner, size[1]))}"
        raise MedsegError(f"{said} (width x height); draw the mask on the image itself")
    return pixels


def banner_of(grey: np.ndarray) -> int:
    """Rows at the foot where an instrument wrote: most of each row has one value, and above them it does not."""
    num = len(grey)
    flat = np.array([_commonest(row) for row in grey[num - int(num * BANNER[1]) :]])
    busy = np.flatnonzero(flat < FLAT_ROW)
    cut = len(flat) - 1 - (busy[-1] if busy.size else -1)
    above = flat[max(0, len(flat) - cut - 8) : len(flat) - cut]
    return int(cut) if cut >= BANNER[0] and above.size and np.median(above) < BUSY_ROW else 0


def _commonest(row: np.ndarray) -> float:
    return float(np.unique(row, return_counts=True)[1].max() / len(row))


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def facts_of(seen: Seen) -> dict[str, Any]:
    """What a case's notes say: size, banner, mean and standard deviation of the values in [0, 1]."""
    num = seen.size[0] * seen.size[1]
    mean = seen.sums[0] / num
    std = float(np.sqrt(max(seen.sums[1] / num - mean**2, 0)))
    return {"size": list(seen.size), "banner": seen.banner, "mean": round(mean, 6), "std": round(std, 6)}
