"""Patients into training, validation and test."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg_cardiac.dataset import CASES, discover
from medseg_core.cases import Case, read_cases, split_cases, write_split
from medseg_core.errors import MedsegError
from medseg_core.io import write_text

PARTS = ("train", "val", "test")
WHOLE = 1e-3  # how far ratios may be from 1 together: 0.333, 0.333, 0.333

log = logging.getLogger(__name__)


def split(
    data: Path, out: Path, *, ratios: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 42
) -> dict[str, list[str]]:
    """Writes `{seed, unit, train, val, test}` to `out` and `{part}_cases.txt`, an id a line, beside it.

    Patients of one `group` in `cases.json` stay together. Each part whose ratio is above 0 gets at least one patient;
    which one follows from seed and names alone, see `medseg_core.cases.split_cases`.

    Args:
        ratios: of train, val and test, 1 together.

    Returns:
        part -> ids, sorted.

    Raises:
        MedsegError: no patients, fewer than parts, or ratios that are no shares.
    """
    train, val, test = _checked(ratios)
    patients = discover(data)
    empty = [patient.id for patient in patients if not patient.planes]
    if empty:
        log.warning("%s: cannot be read and is in no part: %s", data, ", ".join(empty))
    groups = _groups(Path(data))
    cases = [Case(p.id, {}, group=groups.get(p.id) or p.id) for p in patients if p.planes]
    num, parts = len({case.unit for case in cases}), sum(ratio > 0 for ratio in (train, val, test))
    if num < parts:
        fix = f"{num} patients cannot fill {parts} parts with one each"
        raise MedsegError(f"{data} holds {num} patients: {fix}; add patients, or give --ratios {_fewer(num)}")
    if val:
        chosen = split_cases(cases, val=val, test=test, seed=seed)
    else:  # of two patients one is held out: core would keep a place for val
        drawn = split_cases(cases, val=test, seed=seed)
        chosen = [replace(case, split="test" if case.split == "val" else case.split) for case in drawn]
    out = Path(out)
    write_split(out, chosen, seed=seed)
    lists = {part: sorted(case.id for case in chosen if case.split == part) for part in PARTS}
    for part, names in lists.items():
        write_text(out.with_name(f"{part}_cases.txt"), "".join(f"{name}\n" for name in names))
    return lists


def _checked(ratios: Sequence[float]) -> tuple[float, float, float]:
    numbers = tuple(float(ratio) for ratio in ratios)
    if len(numbers) != len(PARTS) or not all(0 <= ratio <= 1 for ratio in numbers) or numbers[0] == 0:
        raise MedsegError(f"ratios {numbers} must be shares of train (above 0), val and test, like 0.7,0.15,0.15")
    if abs(sum(numbers) - 1) > WHOLE:
        fixed = ",".join(f"{ratio / sum(numbers):.3g}" for ratio in numbers)
        raise MedsegError(f"ratios {numbers} are {sum(numbers):g} together and must be 1; try {fixed}")
    return numbers


def _fewer(num: int) -> str:
    return "0.5,0,0.5" if num > 1 else "1,0,0"


def _groups(data: Path) -> dict[str, str]:
    return {case.id: case.group for case in read_cases(data / CASES)} if (data / CASES).is_file() else {}
