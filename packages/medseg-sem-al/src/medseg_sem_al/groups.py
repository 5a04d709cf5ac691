"""What a split keeps whole: frames of one sequence, runs of frames, and pictures that are nearly the same."""

import re
from collections.abc import Mapping, Sequence

from medseg_core.errors import MedsegError

NUMBERED = re.compile(r"^(.*?)[-_ ]?(\d+)$")


def numbered(name: str) -> tuple[str, int | None]:
    """The sequence of a name, which is all but its last number, and that number; the name and None without one."""
    match = NUMBERED.match(name)
    return (match[1], int(match[2])) if match else (name, None)


def groups_of(names: Sequence[str], how: str) -> list[str]:
    """A group for each name.

    Args:
        how: "sequence" is the name without its last number, a mere number by itself; "block" a run of such numbers
            without a gap; "image" the name itself; else a regular expression whose match is the group, the name itself
            where it does not match.

    Raises:
        MedsegError: an expression that is none.
    """
    if how == "image":
        return list(names)
    if how in ("sequence", "block"):
        parts = [numbered(name) for name in names]
        if how == "sequence":
            return [sequence or name for name, (sequence, _) in zip(names, parts, strict=True)]
        return _blocks([sequence for sequence, _ in parts], [number or 0 for _, number in parts])
    try:
        pattern = re.compile(how)
    except re.error as error:
        raise MedsegError(
            f"--group {how!r} is no regular expression ({error}); or say sequence, block or image"
        ) from None
    return [match.group() if (match := pattern.search(name)) and match.group() else name for name in names]


def _blocks(sequences: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """The sequence and the first number of a run."""
    found = [""] * len(sequences)
    before: tuple[str, int] | None = None
    first = 0
    for place in sorted(range(len(sequences)), key=lambda place: (sequences[place], numbers[place])):
        sequence, number = sequences[place], numbers[place]
        if before is None or before[0] != sequence or number > before[1] + 1:
            first = number
        found[place] = f"{sequence}_{first}"
        before = (sequence, number)
    return found


def merged(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The groups after those of each pair became one, which keeps the name that comes first."""
    heads: dict[str, str] = {group: group for group in groups}
    for one, other in pairs:
        first, second = sorted((_head(heads, groups[one]), _head(heads, groups[other])))
        heads[second] = first
    return [_head(heads, group) for group in groups]


def _head(heads: Mapping[str, str], group: str) -> str:
    while heads[group] != group:
        group = heads[group]
    return group
