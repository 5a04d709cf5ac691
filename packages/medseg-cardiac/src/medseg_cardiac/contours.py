"""Contours drawn by hand: text files of points, the pixels inside, and the way back from a mask.

Points are (h, w) in pixels, pixel centres at whole numbers, closed without repeating the first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import contourpy
import numpy as np

from medseg_core.errors import MedsegError

NAME = re.compile(r"(?P<frame>.*?(?P<number>\d+))-(?P<kind>[io])contour(?:-(?P<how>manual|auto))?\.txt", re.IGNORECASE)
SUFFIX = ".txt"
FEWEST = 3
ON_LINE = 1e-9  # pixels; points are written to hundredths


@dataclass(frozen=True)
class Drawn:
    """The contours of one frame.

    Args:
        number: of the frame, the last of its name: 68 of IM-0001-0068.
        frame: the name, without kind and suffix: IM-0001-0068.
        inner, outer: endocardium and epicardium, where there is a file.
    """

    number: int
    frame: str
    inner: Path | None = None
    outer: Path | None = None


def read_contour(path: Path) -> np.ndarray:
    """(P, 2) points (h, w) of a text file with a pair "x y" in each line, in pixels: x is the column.

    Empty lines are passed over, and a last point that repeats the first is left out. This is the format of the
    Sunnybrook cardiac data (Radau et al., 2009).

    Raises:
        MedsegError: missing, no text, a line that is no pair of finite numbers, or fewer than three points.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MedsegError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MedsegError(f"cannot read {path}: {error}; give a text file with x y in each line") from None
    points = []
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        try:
            pair = [float(word) for word in words]
        except ValueError:
            pair = []
        if words and (len(pair) != 2 or not np.isfinite(pair).all()):
            raise MedsegError(f"line {number} of {path} is {line[:40]!r} where a pair x y is meant; correct it")
        points += [pair[::-1]] if words else []
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()
    if len(points) < FEWEST:
        raise MedsegError(f"{path} has {len(points)} points and a contour has at least {FEWEST}; draw it again")
    return np.array(points)


def find_contours(folder: Path) -> dict[str, Drawn]:
    """Frame -> its contours, of a folder with names such as IM-0001-0068-icontour-manual.txt; `o` is the outer one.

    Other files are passed over; a manual contour goes before an automatic one.

    Raises:
        MedsegError: no such folder, or none of its files is named like a contour.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MedsegError(f"there is no folder of contours {folder}")
    found: dict[str, Drawn] = {}
    ranks: dict[tuple[str, str], bool] = {}
    for path in sorted(folder.iterdir()):  # "-auto" comes before "-manual", which takes its place
        name = NAME.fullmatch(path.name)
        if not name or path.name.startswith("."):
            continue
        frame, kind = name["frame"], {"i": "inner", "o": "outer"}[name["kind"].lower()]
        automatic = (name["how"] or "").lower() == "auto"
        if ranks.get((frame, kind)) is False:
            raise MedsegError(f"{folder} has two {kind} contours of {frame}; remove one of them")
        ranks[frame, kind] = automatic
        found[frame] = Drawn(**{**vars(found.get(frame, Drawn(int(name["number"]), frame))), kind: path})
    if not found:
        raise MedsegError(f"{folder} holds no contour; name them like IM-0001-0068-icontour-manual.txt")
    return found


def match_frames(drawn: Mapping[str, Drawn], frames: Iterable[str]) -> dict[str, Drawn]:
    """Name of a frame -> its contours, by the whole name, else by the last number of both.

    Raises:
        MedsegError: a number that two contours or two frames share.
    """
    matched = {}
    by_number: dict[int, Drawn] = {}
    for each in drawn.values():
        if by_number.setdefault(each.number, each) is not each:
            by_number[each.number] = Drawn(each.number, "")
    seen: dict[int, str] = {}
    for frame in frames:
        numbers = re.findall(r"\d+", frame)
        contours = drawn.get(frame) or (by_number.get(int(numbers[-1])) if numbers else None)
        if contours is None:
            continue
        first = seen.setdefault(contours.number, frame)
        if not contours.frame or first != frame:
            raise MedsegError(
                f"contours of number {contours.number} may belong to {first} or {frame}, or are there twice; name each "
                "contour as its frame: NAME-icontour-manual.txt"
            )
        matched[frame] = contours
    return matched


def rasterise(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie inside a contour or on it: (H, W) bool, even-odd where it crosses itself.

    Contours drawn on a grid of half pixels pass through many centres; counting those in is what scikit-image's
    `polygon` does. What lies beyond the picture is cut.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), dtype=np.int64)
    touched = np.zeros(shape, dtype=bool)
    for one, other in zip(points, np.roll(points, -1, axis=0), strict=True):
        (h0, w0), (h1, w1) = sorted((tuple(one), tuple(other)))
        if h0 == h1:
            if h0 == round(h0) and 0 <= h0 < height:
                touched[round(h0), max(0, int(np.ceil(w0))) : max(0, int(np.floor(w1)) + 1)] = True
            continue
        rows = np.arange(max(0, int(np.ceil(h0))), min(height, int(np.floor(h1)) + 1))
        columns = w0 + (rows - h0) * ((w1 - w0) / (h1 - h0))
        at = np.rint(columns)
        on = (np.abs(columns - at) < ON_LINE) & (at >= 0) & (at < width)
        touched[rows[on], at[on].astype(int)] = True
        below = rows < h1  # each row is crossed once where two edges meet
        np.add.at(crossings, (rows[below], np.clip(np.ceil(columns[below]), 0, width).astype(int)), 1)
    return (crossings.cumsum(axis=1)[:, :width] % 2 == 1) | touched


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """The closed contours of a mask, (P, 2) each, half-way between pixels inside and outside; holes have their own."""
    padded = np.pad(np.asarray(mask, dtype=np.float64), 1)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    return [np.asarray(line)[:-1, ::-1] - 1 for line in lines]
