"""Which patients a folder holds: cine, LGE and masks of each short-axis slice, whatever layout they lie in.

A root has `images/cmr/<case>`, a folder of a file per slice or one file; DATA is one, or holds one per patient.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg_cardiac.planes import Cine, Place, num_slices_of, read_cine, read_head, read_mask, write_masks
from medseg_core.cases import read_cases
from medseg_core.errors import MedsegError, meant
from medseg_core.io import case_name

__all__ = ["Cine", "Note", "Patient", "Place", "Plane", "discover", "read_cine", "read_mask", "stack_of", "write_masks"]

CINE, LGE = "images/cmr", "images/lge"
MASKS = {  # role -> folders under labels/, the name after the case's, and whose plane it lies on
    "myo": (("cmr/cmr_Myo_mask", "cmr_Myo_mask"), "", "cine"),
    "lv_ed": (("cmr/cmr_LV_mask", "cmr_LV_mask"), "_ED", "cine"),
    "lv_es": (("cmr/cmr_LV_mask", "cmr_LV_mask"), "_ES", "cine"),
    "mi": (("cmr/cmr_MI_mask", "cmr_MI_mask"), "", "cine"),
    "lge_myo": (("lge/lge_Myo_labels", "lge_original/lge_Myo_labels", "lge_Myo_labels"), "", "lge"),
    "lge_mi": (("lge/lge_MI_labels", "lge_original/lge_MI_labels", "lge_MI_labels"), "", "lge"),
}
CASES = "cases.json"
SIDES = {0: "first", 2: "last"}
SUFFIXES = (".nii.gz", ".nii")

log = logging.getLogger(__name__)


class Note(str):
    """A line about a patient; its severity is "error" for what is left out, "warning", or "note" for what is right."""

    __slots__ = ("severity",)
    severity: str

    def __new__(cls, text: str, severity: str = "warning") -> "Note":
        note = super().__new__(cls, text)
        note.severity = severity
        return note


@dataclass(frozen=True)
class Plane:
    """One short-axis slice of a patient.

    Args:
        name: of its files, "slice_04".
        index: rank in the stack.
        places: by role: cine, myo, lv_ed, lv_es, mi (in the plane of the cine), lge, lge_myo, lge_mi.
        ed, es: frames, where a case list gives them.
    """

    case: str
    name: str
    index: int
    places: Mapping[str, Place]
    ed: int | None = None
    es: int | None = None


@dataclass(frozen=True)
class Patient:
    """All slices of one patient.

    Args:
        notes: one line each: what is missing, what is left out and why, which axis order was found.
    """

    id: str
    planes: tuple[Plane, ...]
    notes: tuple[Note, ...]


def discover(data: Path, *, axes: str = "auto") -> list[Patient]:
    """The patients of a folder, sorted by id; only headers are read. One whose cine is unreadable has no planes.

    A slice's index in a mask volume is its rank among the sorted names of the slice files; LGE volumes that leave out
    slices go by the names of the LGE files. What does not fit is left out and told in the notes.

    Args:
        data: one root for all, or a folder of a root per patient, at most two levels down; `cases.json` in either gives
            ED and ES by slice, `{"notes": {"ed": {"slice_04": 18}, "es": {"slice_04": 7}}}`.
        axes: of the cines, as for `read_cine`.

    Raises:
        MedsegError: no such folder, no patient, one patient in two roots, or a case list that cannot be read.
    """
    data = Path(data)
    if not data.is_dir():
        raise MedsegError(f"there is no folder {data}; give one that holds {CINE}/<case>/slice_00.nii.gz")
    patients: dict[str, Patient] = {}
    homes: dict[str, Path] = {}
    for root in _roots(data):
        for case, image in _entries(root / CINE).items():
            if case in patients:
                raise MedsegError(f"{case} lies in {homes[case]} and in {root}; give each patient a name of its own")
            homes[case] = root
            patients[case] = _patient(root, case, image, axes)
        alone = sorted(set(_entries(root / LGE)) - set(patients))
        if alone:
            log.warning("%s: LGE without a cine, passed over: %s", root, ", ".join(alone))
    if not patients:
        raise MedsegError(f"{data} holds no patient; cines lie in {CINE}/<case>/<slice>.nii.gz or {CINE}/<case>.nii.gz")
    for folder in dict.fromkeys([data, *homes.values()]):
        if (folder / CASES).is_file():
            for case in read_cases(folder / CASES):
                if case.id in patients:
                    patients[case.id] = _with_phases(patients[case.id], case.notes, folder / CASES)
    return [patients[case] for case in sorted(patients)]


def stack_of(cine: Path, myo: Path, *, axes: str = "auto", index: int | None = None) -> Patient:
    """A patient from files by name, for predicting without a data folder.

    Args:
        cine, myo: a file of one plane or of a stack, or a folder of a file per slice.
        axes: of the cine, as for `read_cine`.
        index: the slice of a mask volume that a cine of one plane belongs to; None takes the rank of the cine's name
            in its folder, where that holds as many files as the mask has slices.

    Raises:
        MedsegError: a file that is missing, or a mask on another grid or of another number of slices.
    """
    cine, myo = Path(cine), Path(myo)
    for path in (cine, myo):
        if not path.exists():
            near = meant(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise MedsegError(f"there is no file or folder {path}{near}")
    case = case_name(cine)
    planes = _planes(case, _images(cine, axes))
    if len(planes) == 1 and planes[0].places["cine"].index is None and myo.is_file():
        rank = _rank(cine if cine.is_file() else planes[0].places["cine"].path, myo, index, axes)
        places = {**planes[0].places, "myo": Place(myo, rank)}
        return Patient(case, (replace(planes[0], index=rank or 0, places=places),), ())
    added, notes = _with_mask(planes, "myo", myo, axes)
    if not any("myo" in plane.places for plane in added):
        raise MedsegError(notes[0] if notes else f"{myo} holds no mask; name each file as its slice of {cine}")
    return Patient(case, tuple(added), tuple(notes))


def _roots(data: Path) -> list[Path]:
    if (data / CINE).is_dir():
        return [data]
    found = [*_folders(data), *(inner for outer in _folders(data) for inner in _folders(outer))]
    return [folder for folder in found if (folder / CINE).is_dir()]


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _entries(folder: Path) -> dict[str, Path]:
    """Case -> its file, or its folder of slices."""
    if not folder.is_dir():
        return {}
    found = {f.name: f for f in _folders(folder) if _files(f)}
    return {case_name(f): f for f in _files(folder)} | found


def _files(folder: Path) -> list[Path]:
    """NIfTI files by name."""
    return sorted(f for f in folder.iterdir() if f.name.endswith(SUFFIXES) and not f.name.startswith("."))


def _images(path: Path, axes: str) -> dict[str, Place]:
    """Slice name -> place, in their order."""
    if path.is_dir():
        files = _files(path)
        if not files:
            raise MedsegError(f"{path} holds no .nii.gz file; give a file, or a folder of a file per slice")
        return {case_name(file): Place(file) for file in files}
    head = read_head(Place(path, 0), axes=axes)
    if head.num_slices == 1:
        return {case_name(path): Place(path)}
    return {f"slice_{k:02d}": Place(path, k) for k in range(head.num_slices)}


def _planes(case: str, images: Mapping[str, Place]) -> list[Plane]:
    return [Plane(case, name, k, {"cine": place}) for k, (name, place) in enumerate(images.items())]


def _patient(root: Path, case: str, image: Path, axes: str) -> Patient:
    notes: list[Note] = []
    try:
        planes = _planes(case, _images(image, axes))
    except MedsegError as error:
        return Patient(case, (), (Note(str(error), "error"),))
    names = [plane.name for plane in planes]
    if names != sorted(names, key=lambda name: [int(t) if t.isdigit() else t for t in _parts(name)]):
        notes.append(Note(f"slices are taken in the order of their names as text: {', '.join(names)}; write 04 for 4"))
    lge = _entries(root / LGE).get(case)
    if lge:
        planes, told = _with_lge(planes, lge)
        notes += told
    for role, (folders, suffix, _) in MASKS.items():
        found = [entries[case + suffix] for f in folders if case + suffix in (entries := _entries(root / "labels" / f))]
        if len(found) > 1:
            notes.append(Note(f"{role} is taken from {found[0]}, not from {found[1]}"))
        if found:
            planes, told = _with_mask(planes, role, found[0], axes)
            notes += told
    return Patient(case, tuple(planes), (*notes, *_missing(planes)))


def _parts(name: str) -> list[str]:
    """Digits and what stands between them, so that text and numbers alternate."""
    parts = [""]
    for letter in name:
        if letter.isdigit() == (len(parts) % 2 == 0):
            parts[-1] += letter
        else:
            parts.append(letter)
    return parts


def _with_lge(planes: Sequence[Plane], lge: Path) -> tuple[list[Plane], list[Note]]:
    try:
        images = _images(lge, "auto")
    except MedsegError as error:
        return list(planes), [Note(str(error), "error")]
    if lge.is_file():
        if len(images) != len(planes):
            text = f"{lge} has {len(images)} slices where the cine has {len(planes)}; it is not used"
            return list(planes), [Note(text, "error")]
        images = dict(zip((plane.name for plane in planes), images.values(), strict=True))
    return _by_name(planes, "lge", images), _strange(planes, lge, images)


def _with_mask(planes: Sequence[Plane], role: str, mask: Path, axes: str) -> tuple[list[Plane], list[Note]]:
    """The planes with a mask each, by the names of its files or by rank in a volume."""
    if mask.is_dir():
        files = {case_name(file): Place(file) for file in _files(mask)}
        return _by_name(planes, role, files), _strange(planes, mask, files)
    image = MASKS[role][2]
    drawn = [plane for plane in planes if image in plane.places]
    if not drawn:
        return list(planes), [Note(f"{mask} has no {image} to lie on; it is not used", "error")]
    try:
        shape = _shape([plane.places[image] for plane in drawn], axes if image == "cine" else "auto")
        axis, num = num_slices_of(mask, shape)
    except MedsegError as error:
        return list(planes), [Note(str(error), "error")]
    order = planes if num == len(planes) else drawn
    if num != len(order):
        text = f"{mask} has {num} slices where the {image} has {len(order)}; it is not used"
        return list(planes), [Note(text, "error")]
    places = {plane.name: Place(mask, k) for k, plane in enumerate(order)}
    return _by_name(planes, role, places), [Note(f"{mask} has its slices along the {SIDES[axis]} axis", "note")]


def _shape(places: Sequence[Place], axes: str) -> tuple[int, int]:
    """H and W of the first picture that can be read; that others are broken is for who reads them to tell."""
    wrong = None
    for place in places:
        try:
            return read_head(place, axes=axes).shape
        except MedsegError as error:
            wrong = wrong or error
    assert wrong is not None
    raise wrong


def _by_name(planes: Sequence[Plane], role: str, places: Mapping[str, Place]) -> list[Plane]:
    return [replace(p, places={**p.places, role: places[p.name]}) if p.name in places else p for p in planes]


def _strange(planes: Sequence[Plane], folder: Path, places: Mapping[str, Place]) -> list[Note]:
    others = sorted(set(places) - {plane.name for plane in planes})
    return [Note(f"{folder} holds {', '.join(others)}, which the cine has not")] if others else []


def _missing(planes: Sequence[Plane]) -> list[Note]:
    """A line for each role that some slices lack: the myocardium, what other slices have, and the labels of an LGE."""
    roles = ["myo", *(r for r in ("lv_ed", "lv_es", "lge", "lge_myo", "lge_mi", "mi") if _having(planes, r))]
    if _having(planes, "lge"):
        roles = list(dict.fromkeys([*roles, "lge_myo", "lge_mi"]))
    lacks = {role: [plane.name for plane in planes if role not in plane.places] for role in roles}
    return [Note(f"no {role} for {', '.join(names)}") for role, names in lacks.items() if names]


def _having(planes: Iterable[Plane], role: str) -> bool:
    return any(role in plane.places for plane in planes)


def _rank(cine: Path, myo: Path, index: int | None, axes: str) -> int | None:
    """Which slice of a mask belongs to a cine of one plane; None where the mask has one."""
    _, num = num_slices_of(myo, read_head(Place(cine), axes=axes).shape)
    if num == 1 and not index:
        return None
    if index is None:
        beside = _files(cine.parent)
        if len(beside) != num:
            raise MedsegError(
                f"{myo} has {num} slices, and {cine.parent} holds {len(beside)} cines; say which slice "
                f"{cine.name} is with --slice 0 to {num - 1}"
            )
        return beside.index(cine)
    if not 0 <= index < num:
        raise MedsegError(f"{myo} has {num} slices and none of number {index}; --slice counts from 0 to {num - 1}")
    return index


def _with_phases(patient: Patient, notes: Mapping[str, object], path: Path) -> Patient:
    """ED and ES of each slice from the notes of a case list."""
    found: dict[str, Mapping[str, object]] = {}
    for phase in ("ed", "es"):
        value = notes.get(phase, {})
        if not isinstance(value, Mapping) or any(type(t) is not int or t < 0 for t in value.values()):
            raise MedsegError(
                f"{path}: {phase} of {patient.id} is {value!r}; write frames by slice, {{'slice_04': 18}}"
            )
        found[phase] = value
    planes = [replace(p, ed=found["ed"].get(p.name), es=found["es"].get(p.name)) for p in patient.planes]
    return replace(patient, planes=tuple(planes))
