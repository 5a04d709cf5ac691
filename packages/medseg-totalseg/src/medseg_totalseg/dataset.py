"""The released TotalSegmentator folder as it is: which cases it holds, how they are split, which masks each one has."""

import csv
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medseg_core.cases import Case
from medseg_core.errors import MedsegError, meant, printable
from medseg_core.io import case_name

CT, MASKS, META = "ct.nii.gz", "segmentations", "meta.csv"
SPLITS = ("train", "val", "test", "")
NAMED_AT_ONCE = 5

log = logging.getLogger(__name__)


def discover(data: Path) -> list[Case]:
    """The cases of a folder, sorted by id; folders that are no cases are ignored and named in the log.

    Args:
        data: holds `<any name>/{ct.nii.gz,segmentations/<name>.nii.gz}` and maybe `meta.csv`, or is one such case.

    Returns:
        Cases with the files `ct` and `segmentations` (a folder), and the split that meta.csv gives, or "". A case is a
        patient, its own group, unless a column `patient` in meta.csv says otherwise.

    Raises:
        MedsegError: no case there, or a meta.csv that cannot be read.
    """
    cases, ignored = scan(data)
    if ignored:
        more = f" and {len(ignored) - NAMED_AT_ONCE} more" * (len(ignored) > NAMED_AT_ONCE)
        log.warning("%s: no cases, ignored: %s%s", data, ", ".join(ignored[:NAMED_AT_ONCE]), more)
    return cases


def scan(data: Path) -> tuple[list[Case], list[str]]:
    """As `discover`, with the names of the folders that are no cases, saying what they lack."""
    data = Path(data)
    if not data.is_dir():
        raise MedsegError(f"there is no folder {data}; give one that holds s0000/{CT} and s0000/{MASKS}/")
    if not _lacks(data):
        folders, ignored = [data.resolve()], []
    else:
        inside = sorted(f for f in data.iterdir() if f.is_dir() and not f.name.startswith("."))
        folders = [f for f in inside if not _lacks(f)]
        ignored = [f"{f.name} (no {_lacks(f)})" for f in inside if _lacks(f)]
    if not folders:
        near = f"; it holds {', '.join(ignored[:NAMED_AT_ONCE])}" if ignored else ""
        raise MedsegError(f"{data} holds no case{near}; a case is a folder with {CT} and {MASKS}/<name>.nii.gz")
    cases = [Case(id=f.name, files={"ct": f / CT, "segmentations": f / MASKS}, group=f.name) for f in folders]
    return _with_meta(cases, data / META), ignored


def masks_of(case: Case) -> dict[str, Path]:
    """Structure name -> mask file, sorted by name; hidden files are none."""
    files = sorted(case.files["segmentations"].iterdir())
    wanted = (f for f in files if f.name.endswith((".nii.gz", ".nii")) and not f.name.startswith("."))
    return {case_name(f): f for f in wanted}


def names_of(cases: Iterable[Case]) -> list[str]:
    """Every structure that some case has a mask file of, sorted."""
    return sorted({name for case in cases for name in masks_of(case)})


def _lacks(folder: Path) -> str:
    """What keeps a folder from being a case, or ""."""
    if not (folder / CT).is_file():
        return CT
    return "" if (folder / MASKS).is_dir() else f"{MASKS}/"


def _with_meta(cases: list[Case], meta: Path) -> list[Case]:
    """Splits and patients from meta.csv; cases that it does not name keep their own."""
    if not meta.is_file():
        return cases
    rows = {row["image_id"]: row for row in _read_meta(meta)}
    told = []
    for case in cases:
        row = rows.get(case.id, {})
        split = (row.get("split") or "").strip()
        if split not in SPLITS:
            fix = f"write train, val, test or nothing{meant(split, SPLITS[:3])}"
            raise MedsegError(f"{meta}: the split of {case.id} is {split!r}; {fix}")
        told.append(replace(case, split=split, group=row.get("patient") or case.group))
    without = [case.id for case in told if not case.split]
    if without and len(without) < len(told):
        log.warning(
            "%s gives no split for %d of %d cases, %s first", meta, len(without), len(told), printable(without[0])
        )
    return told


def _read_meta(meta: Path) -> list[dict[str, str]]:
    """Rows of a table with the column image_id, parted by `;` (as released) or `,`."""
    try:
        lines = meta.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MedsegError(f"cannot read {meta}: {error}; save it as UTF-8 text, or remove it") from None
    header = lines[0] if lines else ""
    rows = list(csv.DictReader(lines, delimiter=";" if ";" in header else ","))
    if "image_id" not in header.replace(",", ";").split(";"):
        raise MedsegError(f"{meta} has no column image_id but {header[:80]!r}; take the released file, or remove it")
    return rows
