"""What a data folder holds, and all that is wrong with it, before any work is done on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg_cardiac.dataset import MASKS, SIDES, Cine, Patient, Place, Plane, discover, read_cine, read_mask
from medseg_cardiac.phases import find_phases, find_shared_phases
from medseg_cardiac.planes import slice_axis
from medseg_core.cases import Case, write_cases
from medseg_core.errors import MedsegError
from medseg_core.io import read_grid
from medseg_core.progress import track
from medseg_core.runs import aligned

APART_MM = 0.5  # corners of a mask this far from those of its picture: less than half a pixel
SHARED = 0.05  # of one mask in another, from where on one of them is no good
SPREAD = 0.01  # relative difference of pixel sizes that counts

Finding = dict[str, str]
Told = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Args:
        patients: a row each: patient, slices, frames, size, spacing_mm, thickness_mm, roles (role -> slices that have
            it), ed, es (None where nothing tells; found: whether the frames did), infarct_share.
        findings: `{"case", "severity", "text"}`: "error" for what is skipped or refused, "warning" for what nobody
            should trust unseen, "note" for what is worth knowing. The case "" is the whole folder.
    """

    patients: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]

    @property
    def bad(self) -> bool:
        """Whether something is an error."""
        return any(finding["severity"] == "error" for finding in self.findings)

    def table(self) -> str:
        """The patients as text, a line each below their heads; frames found by us bear a ~."""
        head = ("patient", "slices", "frames", "pixels", "mm", "masks", "ED/ES", "infarct")
        lines = [_line(row) for row in self.patients]
        return "\n".join(aligned({title: [line[k] for line in lines] for k, title in enumerate(head)}))


@dataclass
class _Seen:
    """One patient as it is read: pictures and masks by slice name, and sums of areas in mm2 times thickness."""

    cines: dict[str, Cine] = field(default_factory=dict)
    myos: dict[str, np.ndarray] = field(default_factory=dict)
    wall: float = 0.0
    infarct: float | None = None


def check(data: Path, *, out: Path | None = None, axes: str = "auto") -> Checked:
    """Reads every file of a cohort and says what is there and what is wrong with it.

    Args:
        data: as for `discover`.
        out: where to write the case list: files, and ED and ES of each slice, given or found. DATA/cases.json is where
            `discover` looks for it.
        axes: of the cines, as for `read_cine`.

    Raises:
        MedsegError: no such folder, or no patient in it.
    """
    rows, findings, cases, notes = [], [], [], []
    for patient in track(discover(data, axes=axes), "Checking patients"):
        seen = _Seen()
        told = [(note.severity, str(note)) for note in patient.notes if note.severity != "note"]
        told += _check_planes(patient, seen, axes)
        phases, found = {}, False
        try:
            phases, found = _phases(patient, seen)
        except MedsegError as error:
            told.append(("error", str(error)))
        told += _check_phases(patient, seen)
        notes += [str(note) for note in patient.notes if note.severity == "note"]
        rows.append(_row(patient, seen, phases, found))
        findings += [{"case": patient.id, "severity": severity, "text": text} for severity, text in told]
        cases.append(Case(patient.id, _files(patient), group=patient.id, notes=phases))
    findings += [{"case": "", "severity": "note", "text": text} for text in _of_all(rows, notes)]
    if out is not None:
        write_cases(Path(out), cases)
    return Checked(tuple(rows), tuple(findings))


def _of_all(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Iterator[str]:
    """What is said once for the whole folder."""
    for side in SIDES.values():
        num = sum(note.endswith(f"along the {side} axis") for note in notes)
        if num:
            yield f"{num} mask volumes have their slices along the {side} axis, told by H and W of the pictures"
    found = [row["patient"] for row in rows if row["found"]]
    if found:
        yield f"ED or ES of {len(found)} patients is in no case list and was found from the frames: {_some(found)}"
    if not any(row["roles"]["lge"] for row in rows):
        yield "no LGE: motion can be trained, registration and infarct segmentation cannot"


def _some(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + f" and {len(words) - most} more" * (len(words) > most)


def _check_planes(patient: Patient, seen: _Seen, axes: str) -> Told:
    for plane in patient.planes:
        try:
            cine = read_cine(plane.places["cine"], axes=axes)
        except MedsegError as error:
            yield "error", str(error)
            continue
        seen.cines[plane.name] = cine
        yield from _check_cine(plane, cine)
        masks, told = _masks(plane, "cine", cine)
        yield from told
        if "myo" in masks and masks["myo"].any():
            seen.myos[plane.name] = masks["myo"]
        yield from _check_overlap(plane, masks)
        if "lge" in plane.places:
            yield from _check_lge(plane, seen)
        elif "mi" in masks and "myo" in masks:
            _add_infarct(seen, masks["mi"], masks["myo"], cine)
    yield from _check_alike(seen.cines)


def _check_cine(plane: Plane, cine: Cine) -> Told:
    if len(cine.frames) == 1:
        yield "error", f"{plane.places['cine'].path} has one frame, so nothing moves; give the whole cycle"
    elif (cine.frames == cine.frames[0]).all():
        yield "error", f"all {len(cine.frames)} frames of {plane.places['cine'].path} are equal, so nothing moves"
    if cine.spacing_mm == (1.0, 1.0):
        yield "warning", f"{plane.name} has pixels of 1 x 1 mm: is its header empty? lengths in mm rest on it"


def _masks(plane: Plane, image: str, picture: Cine) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """The masks that lie on a picture, and what is wrong with them."""
    masks, told = {}, []
    for role, (_, _, home) in MASKS.items():
        if home != image or role not in plane.places:
            continue
        place = plane.places[role]
        try:
            masks[role] = read_mask(place, picture.frames.shape[1:])
        except MedsegError as error:
            told.append(("error", str(error)))
            continue
        if not masks[role].any():
            severity = "note" if role in ("mi", "lge_mi") else "warning"
            told.append((severity, f"{role} of {plane.name} is empty"))
        apart_mm = _apart_mm(place, picture)
        if apart_mm > APART_MM:
            text = f"{place.path} lies {apart_mm:.3g} mm from {plane.places[image].path.name} by its header"
            told.append(("warning", f"{text}; it is used as drawn, pixel by pixel"))
    return masks, told


def _apart_mm(place: Place, picture: Cine) -> float:
    """How far corners of a mask lie from those of its picture; 0 where one of them does not say where it lies."""
    shape = picture.frames.shape[1:]
    grid = read_grid(place.path)
    if picture.affine is None or slice_axis(place, grid.shape, shape) != 2 or np.array_equal(grid.affine, np.eye(4)):
        return 0.0
    affine = grid.affine.copy()
    affine[:3, 3] += (place.index or 0) * affine[:3, 2]
    corners = np.array([(h, w, 0, 1) for h in (0, shape[0] - 1) for w in (0, shape[1] - 1)])
    return float(np.linalg.norm(corners @ (affine - picture.affine)[:3].T, axis=1).max())


def _check_overlap(plane: Plane, masks: Mapping[str, np.ndarray]) -> Told:
    if "myo" in masks and "lv_ed" in masks:
        share = _share(masks["lv_ed"], masks["myo"])
        if share > SHARED:
            yield "warning", f"{share:.0%} of lv_ed of {plane.name} is myocardium too; are they of one frame?"
    for inner, outer in (("mi", "myo"), ("lge_mi", "lge_myo")):
        if inner in masks and outer in masks and masks[inner].any():
            share = 1 - _share(masks[inner], masks[outer])
            if share > SHARED:
                yield "warning", f"{share:.0%} of {inner} of {plane.name} lies outside {outer}"


def _check_lge(plane: Plane, seen: _Seen) -> Told:
    try:
        lge = read_cine(plane.places["lge"])
    except MedsegError as error:
        yield "error", str(error)
        return
    if len(lge.frames) > 1:
        yield "error", f"{plane.places['lge'].path} has {len(lge.frames)} frames where LGE has one; is it a cine?"
        return
    masks, told = _masks(plane, "lge", lge)
    yield from told
    yield from _check_overlap(plane, masks)
    if "lge_mi" in masks and "lge_myo" in masks:
        _add_infarct(seen, masks["lge_mi"], masks["lge_myo"], lge)


def _add_infarct(seen: _Seen, infarct: np.ndarray, wall: np.ndarray, picture: Cine) -> None:
    size = picture.spacing_mm[0] * picture.spacing_mm[1] * (picture.thickness_mm or 1.0)
    seen.wall += float(wall.sum()) * size
    seen.infarct = (seen.infarct or 0.0) + float((infarct & wall).sum()) * size


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float((part & whole).sum() / max(1, part.sum()))


def _check_alike(cines: Mapping[str, Cine]) -> Told:
    """Slices of one patient are mostly of one kind."""
    numbers = {name: len(cine.frames) for name, cine in cines.items()}
    sizes = {name: "x".join(map(str, cine.frames.shape[1:])) for name, cine in cines.items()}
    for what, values in (("frames", numbers), ("pixels", sizes)):
        if len(set(values.values())) > 1:
            kinds = ", ".join(f"{name} {value}" for name, value in values.items())
            yield "warning", f"slices differ in their number of {what}: {kinds}"
    steps = np.array([cine.spacing_mm for cine in cines.values()])
    if len(steps) and (np.ptp(steps, axis=0) > SPREAD * steps.min(axis=0)).any():
        kinds = ", ".join(f"{name} {cine.spacing_mm[0]:.3g} x {cine.spacing_mm[1]:.3g}" for name, cine in cines.items())
        yield "warning", f"slices differ in the size of their pixels, in mm: {kinds}"


def _phases(patient: Patient, seen: _Seen) -> tuple[dict[str, dict[str, int]], bool]:
    """Slice -> frame for ed and es: as given, else from the blood of all slices; and whether some were found so."""
    given = {
        phase: {p.name: t for p in patient.planes if (t := getattr(p, phase)) is not None} for phase in ("ed", "es")
    }
    names = [name for name in seen.cines if len(seen.cines[name].frames) > 1]
    bare = [name for name in names if name not in given["ed"] or name not in given["es"]]
    if not bare:
        return given, False
    drawn = [name for name in names if name in seen.myos]
    lengths = {len(seen.cines[name].frames) for name in names}
    if drawn and len(lengths) == 1:
        both = find_shared_phases([seen.cines[n].frames for n in drawn], [seen.myos[n] for n in drawn])
        answers = dict.fromkeys(bare, both)
    else:
        answers = {name: find_phases(seen.cines[name].frames, seen.myos.get(name)) for name in bare}
    found = {"ed": {n: both[0] for n, both in answers.items()}, "es": {n: both[1] for n, both in answers.items()}}
    return {phase: {**found[phase], **given[phase]} for phase in ("ed", "es")}, True


def _check_phases(patient: Patient, seen: _Seen) -> Told:
    for plane in patient.planes:
        if plane.name in seen.cines:
            num = len(seen.cines[plane.name].frames)
            for phase in ("ed", "es"):
                t = getattr(plane, phase)
                if t is not None and t >= num:
                    yield "error", f"{phase} of {plane.name} is frame {t}, and there are {num}, counted from 0"
        if plane.ed is not None and plane.ed == plane.es:
            yield "error", f"ED and ES of {plane.name} are both frame {plane.ed}; correct the case list"


def _row(patient: Patient, seen: _Seen, phases: Mapping[str, Mapping[str, int]], found: bool) -> dict[str, Any]:
    cines = list(seen.cines.values())
    roles = ("myo", "lv_ed", "lv_es", "mi", "lge", "lge_myo", "lge_mi")
    thick = sorted({round(cine.thickness_mm, 2) for cine in cines if cine.thickness_mm is not None})
    return {
        "patient": patient.id,
        "slices": len(patient.planes),
        "frames": sorted({len(cine.frames) for cine in cines}),
        "size": sorted({cine.frames.shape[1:] for cine in cines}),
        "spacing_mm": sorted({tuple(round(mm, 3) for mm in cine.spacing_mm) for cine in cines}),
        "thickness_mm": thick,
        "roles": {role: sum(role in plane.places for plane in patient.planes) for role in roles},
        "ed": sorted(set(phases.get("ed", {}).values())),
        "es": sorted(set(phases.get("es", {}).values())),
        "found": found,
        "infarct_share": None if seen.infarct is None or not seen.wall else seen.infarct / seen.wall,
    }


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    def some(values: Sequence[Any], mark: str = "x") -> str:
        words = [mark.join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}" for value in values]
        return ",".join(words) if len(words) < 4 else f"{words[0]}..{words[-1]}"

    mm = some(row["spacing_mm"]) + (f"x{some(row['thickness_mm'])}" if row["thickness_mm"] else "")
    roles = " ".join(role if num == row["slices"] else f"{role}:{num}" for role, num in row["roles"].items() if num)
    phases = f"{some(row['ed'])}/{some(row['es'])}" if row["ed"] and row["es"] else "-"
    share = "-" if row["infarct_share"] is None else f"{row['infarct_share']:.1%}"
    texts = (str(row["slices"]), some(row["frames"]) or "-", some(row["size"]) or "-", mm or "-", roles or "-")
    return (row["patient"], *texts, phases + "~" * (row["found"] and phases != "-"), share)


def _files(patient: Patient) -> dict[str, Path]:
    """Role -> its file, or the folder of a file per slice."""
    files: dict[str, Path] = {}
    for plane in patient.planes:
        for role, place in plane.places.items():
            files.setdefault(role, place.path if place.index is not None else place.path.parent)
    return files
