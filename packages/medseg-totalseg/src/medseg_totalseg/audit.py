"""All that is wrong with a folder of cases, found before any work is done on it."""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_core.io import read_volume
from medseg_core.join import Joined, join_masks
from medseg_core.progress import track
from medseg_core.volume import Volume
from medseg_totalseg.dataset import masks_of, names_of, scan
from medseg_totalseg.labels import choose, mirror_pairs
from medseg_totalseg.prepare import whole_hu

AIR_HU = -200.0  # a scan without any voxel below this shows no air, neither around nor inside the patient
HIGHEST_HU, LOWEST_HU = 3071.0, -1024.0  # what a 12-bit scanner can say
APART_MM = 10.0  # left and right this far on the wrong sides are no midline structures
FEW_VOXELS = 8
FEW_SHARED = 0.001  # of the labelled voxels: rounding at borders

Finding = dict[str, str]


def check(data: Path, *, labels: str = "official", missing: str = "empty") -> list[Finding]:
    """Reads every file of a cohort and says what is wrong with it.

    Args:
        data: a released folder, or a single case.
        labels: the class list that names are held against, as in `medseg_totalseg.labels.choose`.
        missing: what a mask without a file means, "empty" or "ignore"; only the wording follows from it.

    Returns:
        `{"case", "severity", "text"}`, one line each: "error" for what `prepare` refuses, "warning" for what it takes
        and nobody should trust unseen, "note" for what is worth knowing. The case "" is the whole folder.

    Raises:
        MedsegError: there is no such folder.
    """
    if not Path(data).is_dir():
        raise MedsegError(f"there is no folder {data}")
    try:
        cases, ignored = scan(data)
    except MedsegError as error:
        return [_finding("", "error", str(error))]
    findings = [_finding("", "note", f"ignored, no case: {name}") for name in ignored]
    names = names_of(cases)
    chosen = choose(names, "folder")
    try:
        chosen = choose(names, labels)
    except MedsegError as error:
        findings.append(_finding("", "error", str(error)))
    scans: dict[int, str] = {}
    for case in track(cases, "Checking cases"):
        findings += [_finding(case.id, severity, text) for severity, text in _check_case(case, chosen, scans)]
    return findings + [_finding("", "note", text) for text in _missing_files(cases, names, missing)]


def _finding(case: str, severity: str, text: str) -> Finding:
    return {"case": case, "severity": severity, "text": text}


def _check_case(case: Case, labels: Mapping[int, str], scans: dict[int, str]) -> Iterator[tuple[str, str]]:
    try:
        ct = read_volume(case.files["ct"])
    except MedsegError as error:
        yield "error", str(error)
        return
    yield from _check_scan(case, ct, scans)
    masks = masks_of(case)
    if not masks:
        yield "error", f"{case.files['segmentations']} holds no masks"
    good = {}
    for label, name in labels.items():
        if name in masks:
            try:
                join_masks({label: masks[name]}, ct.grid)
                good[label] = masks[name]
            except MedsegError as error:
                yield "error", str(error)
    joined = join_masks(good, ct.grid)
    yield from _check_sizes(joined, labels)
    yield from _check_overlap(joined, labels)
    yield from _check_sides(Volume(joined.layers[0], ct.affine), labels)


def _check_scan(case: Case, ct: Volume, scans: dict[int, str]) -> Iterator[tuple[str, str]]:
    path, voxels = case.files["ct"], ct.voxels
    num_bad = voxels.size - int(np.isfinite(voxels).sum())
    if num_bad:
        yield "error", f"{path} has {num_bad} voxels that are no numbers (NaN or infinite); export it again"
        return
    low, high = float(voxels.min()), float(voxels.max())
    if low > AIR_HU:
        yield "warning", f"lowest value {low:g}: a CT in HU shows air (-1000); check slope and intercept"
    if low < LOWEST_HU:
        yield "note", f"lowest value {low:g} is below air: padding outside the scanner's field"
    if high > HIGHEST_HU:
        yield "warning", f"highest value {high:g} is beyond {HIGHEST_HU:g} HU: metal, or a wrong slope"
    same = scans.setdefault(zlib.crc32(np.ascontiguousarray(whole_hu(voxels).T)), case.id)
    if same != case.id:
        yield "warning", f"the same scan as {same}; keep the two in one split, or remove one"


def _check_sizes(joined: Joined, labels: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    empty = [labels[i] for i, num in joined.voxels.items() if num == 0]
    tiny = [f"{labels[i]} ({num})" for i, num in joined.voxels.items() if 0 < num < FEW_VOXELS]
    if empty:
        yield "note", f"{len(empty)} of {len(joined.voxels)} masks are empty: {_some(empty)}"
    if tiny:
        yield "warning", f"masks of less than {FEW_VOXELS} voxels: {_some(tiny)}"


def _check_overlap(joined: Joined, labels: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    if len(joined.layers) < 2:
        return
    shared, all_labelled = (int(np.count_nonzero(layer)) for layer in joined.layers[1::-1])
    pairs = sorted(joined.overlaps.items(), key=lambda pair: -pair[1])
    said = _some([f"{labels[a]} and {labels[b]} {num}" for (a, b), num in pairs])
    severity = "note" if shared < FEW_SHARED * all_labelled else "warning"
    yield severity, f"{shared} voxels ({shared / all_labelled:.2%}) lie in more than one structure: {said}"


def _check_sides(label: Volume, labels: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    pairs = mirror_pairs(labels)
    x_mm = _centres_mm(label)
    lefts = [i for i in pairs if "left" in labels[i].lower() and i in x_mm and pairs[i] in x_mm]
    swapped = [labels[i] for i in lefts if x_mm[i] > x_mm[pairs[i]] + APART_MM]
    if swapped and len(swapped) == len(lefts) > 1:
        yield "warning", f"all {len(lefts)} left structures lie on the right: the affine is mirrored, or the names are"
    elif swapped:
        yield "warning", f"left lies on the right: {_some(swapped)}; are the names of the two sides swapped?"


def _centres_mm(label: Volume) -> dict[int, float]:
    """Mean world x (to the patient's right) of each id."""
    at = np.nonzero(label.voxels)
    ids = label.voxels[at]
    x_mm = label.affine[0, 3] + sum(a * index for a, index in zip(label.affine[0], at, strict=False))
    num = np.bincount(ids)
    total = np.bincount(ids, weights=x_mm) if len(ids) else np.zeros(0)
    return {i: float(total[i] / num[i]) for i in np.flatnonzero(num).tolist()}


def _missing_files(cases: Sequence[Case], names: Sequence[str], missing: str) -> list[str]:
    """A line about structures that only some cases have a file of."""
    found = Counter(name for case in cases for name in masks_of(case))
    partly = [f"{name} ({found[name]} of {len(cases)})" for name in names if found[name] < len(cases)]
    if not partly:
        return []
    taken = "taken as not annotated" if missing == "ignore" else "taken as empty; --missing ignore if not annotated"
    return [f"structures without a file in some cases, {taken}: {_some(partly)}"]


def _some(words: Sequence[str], most: int = 6) -> str:
    more = f" and {len(words) - most} more" * (len(words) > most)
    return ", ".join(words[:most]) + more
