"""Masks that a person saved: which files are whole, what they say, and what is wrong with them. Axes: H W of a picture.

A file is looked at once it had the same size and date in two looks: it may still be on its way over a network.
"""

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from medseg_core.errors import MedsegError
from medseg_core.io import case_name, is_picture, read_picture, replacing
from medseg_sem_al.colours import UNSEEN, Classes
from medseg_sem_al.outlines import read_outlines
from medseg_sem_al.parts import within
from medseg_sem_al.proposals import BLANK


class Inbox:
    """A folder into which masks are saved.

    Args:
        folder: it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[Path, tuple[int, int]] = {}
        self.told: dict[str, list[tuple[Path, tuple[int, int]]]] = {}

    def settled(self) -> dict[str, list[Path]]:
        """Files that did not change since the last look, by the name of their picture; each is told once."""
        before, self.seen = self.seen, dict(self._looked())
        found: dict[str, list[tuple[Path, tuple[int, int]]]] = {}
        for file, about in self.seen.items():
            found.setdefault(name_of(file), []).append((file, about))
        whole = {name: files for name, files in found.items() if all(before.get(f) == about for f, about in files)}
        new = {name: files for name, files in whole.items() if self.told.get(name) != files}
        self.told = {name: files for name, files in self.told.items() if name in found} | new
        return {name: [file for file, _ in files] for name, files in new.items()}

    def _looked(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for file in saved(self.folder):
            with suppress(OSError):  # gone since it was listed
                about = file.stat()
                if about.st_size:
                    yield file, (about.st_size, about.st_mtime_ns)


def saved(folder: Path) -> list[Path]:
    """Pictures and zips of outlines in a folder, if it is there; what programs hide is none."""
    found = sorted(folder.glob("*")) if folder.is_dir() else []
    known = [file for file in found if is_picture(file) or is_outlines(file)]
    return [file for file in known if file.is_file() and not file.name.startswith((".", "~"))]


def name_of(file: Path) -> str:
    """Of the picture that a saved mask is of."""
    return file.stem if is_outlines(file) else case_name(file)


def is_outlines(file: Path) -> bool:
    """Whether a mask has been saved by ImageJ's ROI manager."""
    return file.suffix.lower() in (".zip", ".roi")


def read_back(
    file: Path,
    size: Sequence[int],
    colours: Sequence[Sequence[int]],
    classes: Classes,
    boxes: Sequence[Sequence[int]],
    *,
    banner: int = 0,
) -> np.ndarray:
    """(H, W) uint8 ids, 255 where nobody labelled: of a palette or of colours by the colours, of greys by their values,
    of outlines by their names.

    The values of a palette do not count, as programs sort palettes anew. What is transparent has no label.

    Args:
        size: of the picture without its banner; the mask may have been drawn with it.
        boxes: (top, left, bottom, right) of what was asked for. Outlines say nothing about the rest, as one around it
            covers it too.

    Raises:
        MedsegError: unreadable, of another size, or with what is no class.
    """
    if is_outlines(file):
        return np.where(within(boxes, size), read_outlines(file, classes.names, size), np.uint8(UNSEEN))
    pixels = read_picture(file).pixels
    with Image.open(file) as picture:
        if picture.mode not in ("L", "P", "RGB", "RGBA"):
            raise MedsegError(f"{file.name} has no whole classes ({picture.mode}); save it as 8 bits or in colours")
        if picture.mode in ("P", "RGBA"):
            pixels = np.array(picture.convert("RGBA"))
    if pixels.shape[:2] == (size[0] + banner, size[1]):
        pixels = pixels[: size[0]]
    if pixels.shape[:2] != tuple(size):
        theirs, ours = (f"{shape[1]}x{shape[0]}" for shape in (pixels.shape, size))
        raise MedsegError(f"{file.name} is {theirs} and its picture {ours} (width x height); save it unscaled")
    if pixels.ndim == 3:
        alpha = pixels[..., 3] if pixels.shape[2] == 4 else np.full(pixels.shape[:2], UNSEEN, np.uint8)
        if ((alpha > 0) & (alpha < UNSEEN)).any():
            raise MedsegError(f"{file.name} is transparent in part; save it without an alpha channel")
        return _by_colour(file, np.where(alpha[..., None] > 0, pixels[..., :3], BLANK), colours, classes)
    grey = pixels
    wrong = (grey >= len(colours)) & (grey != UNSEEN)
    if wrong.any():
        values = Counter(grey[wrong].tolist()).most_common(3)
        told = ", ".join(f"{value} in {num} pixels" for value, num in values)
        said = f"{file.name} holds {told}, which are no classes (0 to {len(colours) - 1}, 255 for none)"
        raise MedsegError(f"{said}; draw with the palette of the proposal")
    return grey.astype(np.uint8)


def _by_colour(file: Path, pixels: np.ndarray, colours: Sequence[Sequence[int]], classes: Classes) -> np.ndarray:
    packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    table = {int(np.dot(colour, (65536, 256, 1))): k for k, colour in enumerate([*colours])}
    table.setdefault(int(np.dot(BLANK, (65536, 256, 1))), UNSEEN)
    values, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    unknown = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in table}
    if unknown:
        worst = max(unknown, key=lambda value: unknown[value])
        rgb = np.array([worst >> 16, worst >> 8 & 255, worst & 255])
        near = int(np.square(np.array(colours) - rgb).sum(1).argmin())
        said = f"{file.name} holds {len(unknown)} colours that are no class, #{worst:06x} in {unknown[worst]} pixels"
        named = f"{classes.names[near]} is #{int(np.dot(colours[near], (65536, 256, 1))):06x}"
        raise MedsegError(f"{said} ({named}); draw with a hard brush, without smoothing")
    ids = np.array([table[int(value)] for value in values], np.uint8)
    return ids[places].reshape(packed.shape)


def check(
    ids: np.ndarray,
    proposal: np.ndarray | None,
    boxes: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    unedited: bool,
) -> list[str]:
    """What is odd about a mask that came back.

    Args:
        proposal: what was given out, 255 outside of what was asked for; None where that is not known any more.
        boxes: (top, left, bottom, right) of that.
        unedited: take a proposal as it was.

    Raises:
        MedsegError: nothing is labelled, or nothing was changed.
    """
    asked = within(boxes, ids.shape)
    covered = float((ids[asked] != UNSEEN).mean())
    if covered == 0:
        raise MedsegError("it labels nothing of what was asked for; paint it, and save it again")
    if proposal is not None and not unedited and np.array_equal(ids, proposal):
        raise MedsegError("it is the proposal, unchanged; correct it, or add --accept-unedited where it is right")
    told = []
    if covered < 1:
        told.append(f"{1 - covered:.1%} of what was asked for has no label yet")
    proposed = [] if proposal is None else np.unique(proposal[proposal != UNSEEN])
    if gone := [names[k] for k in proposed if not (ids == k).any()]:
        told.append(f"the proposal had {', '.join(gone)}, and it has none")
    return told


def back_up(file: Path, watch: Path) -> None:
    """Copies a mask that is about to be replaced, if it is there, to WATCH/backups/X-NNN.png."""
    if file.is_file():
        places = (watch / "backups" / f"{file.stem}-{number:03d}{file.suffix}" for number in itertools.count())
        with replacing(next(place for place in places if not place.exists())) as beside:
            shutil.copyfile(file, beside)


def merged(before: np.ndarray | None, ids: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """The new mask where it was asked for, erased pixels too; elsewhere its labels over the old ones."""
    return ids if before is None else np.where((ids == UNSEEN) & ~within(boxes, ids.shape), before, ids)
