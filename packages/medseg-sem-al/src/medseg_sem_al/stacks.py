"""A picture between its neighbours of one sequence (2.5D). Axes: D frames, H W of a picture."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_core.io import case_name
from medseg_sem_al.groups import numbered

MIDDLE = "image"


def role_of(offset: int) -> str:
    """The name among a case's files of the frame so many places after it: image, frame-1, frame+1."""
    return f"frame{offset:+d}" if offset else MIDDLE


def places_of(depth: int) -> range:
    """Of the frames of a stack, from that of the picture in its middle: -1, 0, 1.

    Raises:
        MedsegError: an even number, which has no middle.
    """
    if depth % 2 == 0:
        raise MedsegError(f"--depth {depth} has no picture in the middle; try {depth - 1} or {depth + 1}")
    return range(-(depth // 2), depth // 2 + 1)


def with_neighbours(cases: Sequence[Case], depth: int, kinds: Sequence[Hashable] | None = None) -> list[Case]:
    """Cases with the files of the frames before and after them, where there are any; what is known stays.

    A sequence is a name without its last number. Its frames are as far apart as the two nearest ones; over a wider gap
    nothing is a neighbour.

    Args:
        kinds: of each case; frames of another kind are no neighbours.
    """
    if depth == 1:
        return list(cases)
    keys: list[tuple[Hashable, str, int | None]] = []
    for case, kind in zip(cases, kinds or [None] * len(cases), strict=True):
        keys.append((kind, *numbered(case_name(case.files[MIDDLE]))))
    files = {key: case.files[MIDDLE] for key, case in zip(keys, cases, strict=True)}
    steps = _steps(files)
    found = []
    for case, (kind, sequence, number) in zip(cases, keys, strict=True):
        frames = {}
        for offset in places_of(depth) if number is not None else ():
            file = files.get((kind, sequence, number + offset * steps[kind, sequence]))
            if offset and file:
                frames[role_of(offset)] = file
        found.append(replace(case, files={**frames, **case.files}))
    return found


def _steps(files: Mapping[tuple[Hashable, str, int | None], Path]) -> dict[tuple[Hashable, str], int]:
    """The least distance of two frames of each sequence; 1 of a single one."""
    numbers: dict[tuple[Hashable, str], list[int]] = {}
    for kind, sequence, number in files:
        if number is not None:
            numbers.setdefault((kind, sequence), []).append(number)
    return {key: min(np.diff(sorted(some)).tolist(), default=1) for key, some in numbers.items()}


def is_listed(case: Case) -> bool:
    """Whether its neighbours are known."""
    return any(role.startswith("frame") for role in case.files)


def lacking(case: Case, depth: int) -> bool:
    """Whether a frame is repeated, as the picture has no neighbour there."""
    return any(role_of(offset) not in case.files for offset in places_of(depth))


def read_stack(case: Case, depth: int, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """(D, H, W) float32; where a frame is missing, the next one towards the middle comes again.

    Args:
        read: (H, W) of a file.

    Raises:
        MedsegError: frames of several sizes.
    """
    middle = read(case.files[MIDDLE])
    frames = {0: middle}
    for offset in sorted(places_of(depth), key=abs)[1:]:
        nearer = offset - (1 if offset > 0 else -1)
        file = case.files.get(role_of(offset))
        frames[offset] = read(file) if file else frames[nearer]
        if frames[offset].shape != middle.shape:
            one, other = (f"{part.shape[1]}x{part.shape[0]}" for part in (middle, frames[offset]))
            said = f"{case.files[MIDDLE]} is {one} and its neighbour {file} {other} (width x height)"
            raise MedsegError(f"{said}; cut both alike, or give them names of two sequences")
    return np.stack([frames[offset] for offset in places_of(depth)])
