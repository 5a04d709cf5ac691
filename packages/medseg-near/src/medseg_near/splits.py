"""Which shapes of a cache are learnt, and which are held out; structures of one scan never part."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from medseg_core.cases import Case, read_cases, read_split, split_cases, write_split
from medseg_core.errors import MedsegError, meant
from medseg_near.shapes import CASES
from medseg_near.sources import some

PARTS = ("train", "val", "test")

log = logging.getLogger(__name__)


def split(cache: Path, out: Path, *, val: float = 0.1, test: float = 0.2, seed: int = 42) -> dict[str, list[str]]:
    """Writes `{seed, unit, train, val, test}` to `out`, ids of shapes, for `read_parts`.

    Parts that a source brings along are kept: MedMNIST's keep a patient's two adrenal glands together, which their
    names do not tell.

    Args:
        val, test: shares of the scans, see `medseg_core.cases.split_cases`.

    Returns:
        part -> ids, sorted.

    Raises:
        MedsegError: no cache, or shares that leave nothing to learn.
    """
    cases = _cases(cache)
    if all(case.split for case in cases):
        log.warning("%s has parts of its own, which are kept; shares and seed play no role", cache)
    chosen = split_cases(cases, val=val, test=test, seed=seed)
    write_split(Path(out), chosen, seed=seed)
    return {part: sorted(case.id for case in chosen if case.split == part) for part in PARTS}


def read_parts(cache: Path, file: Path) -> tuple[list[str], list[str]]:
    """The ids of the shapes to learn, and of those to validate on, both in the order of the cache.

    Args:
        file: `{seed, unit, train, val, test}` with ids of shapes, or of scans, each for all of its shapes. The cache
            may lack cases of `test`.

    Raises:
        MedsegError: no such file, a case of `train` or `val` that the cache lacks, a shape of the cache in no part, a
            scan in two, or nothing to learn.
    """
    cases, listed = _cases(cache), _listed(file)
    by_scan = not any(case.id in listed for case in cases) and any(case.unit in listed for case in cases)
    named = [Case(name, {}) for name in dict.fromkeys(case.unit for case in cases)] if by_scan else cases
    known = [case.id for case in named]
    absent = [name for name, part in listed.items() if part != "test" and name not in known]
    if absent:
        found = f"{some(absent, 3)} of {listed[absent[0]]}{meant(absent[0], known)}"
        raise MedsegError(f"{cache} lacks {found}; prepare what is missing, or take it out of {file}")
    try:
        placed = {case.id: case.split for case in read_split(file, named)}
    except MedsegError as error:
        raise MedsegError(f"{error}; a split that fits: medseg near split {cache} --out FILE") from None
    parts = {case.id: placed[case.unit if by_scan else case.id] for case in cases}
    train, val = ([name for name, part in parts.items() if part == wanted] for wanted in ("train", "val"))
    if not train:
        raise MedsegError(f"{file} leaves nothing to learn: no shape of {cache} is in its train; put some there")
    return train, val


def _cases(cache: Path) -> list[Case]:
    if not (Path(cache) / CASES).is_file():
        raise MedsegError(f"{cache} is no cache of prepared shapes; make one: medseg near prepare LABELS --out {cache}")
    return read_cases(Path(cache) / CASES)


def _listed(file: Path) -> Mapping[str, str]:
    """Name -> part."""
    try:
        read_split(file, [])  # whether it is a split at all
    except MedsegError as error:
        raise MedsegError(f"{error}; medseg near split CACHE --out {file} writes one") from None
    content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    names = {part: [content[part]] if isinstance(content[part], str) else content[part] for part in PARTS}
    return {name: part for part in PARTS for name in names[part]}
