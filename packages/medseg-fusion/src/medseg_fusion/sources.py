"""Who is in a folder of CT and PET: patients with volumes or DICOM, or with pictures of their slices.

DATA/<patient>/{CT_image,PET_image,CT_mask}.nii.gz   volumes; a DICOM series is a folder or a zip, such as pet_dicom.zip
DATA/[train|val|test/]{CT,PET,masks}/<patient>_slice_<n>.png   pictures, the same names in the three folders
DATA/cases.json                                      a list of `medseg_core.cases`, with the files ct, pet and label
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_core.cases import SPLITS, Case, read_cases
from medseg_core.dicom import is_dicom
from medseg_core.errors import MedsegError
from medseg_core.io import case_name, is_picture

ROLES = {"ct": "CT", "pet": "PET", "label": "masks"}  # and the folders of pictures
WORDS = {
    "label": {"mask", "masks", "label", "labels", "seg", "segmentation", "gtv", "tumour", "tumor", "lesion"},
    "pet": {"pet", "pt", "suv"},
    "ct": {"ct", "ctres"},
}
SLICE = re.compile(r"(?P<patient>.+)_slice_(?P<number>\d+)", re.IGNORECASE)
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha", ".zip")
CASES = "cases.json"


@dataclass(frozen=True)
class Found:
    """What lies in a folder.

    Args:
        cases: a patient each, with the files `ct`, `pet` and, where there is one, `label`. Notes say the `kind`,
            "volume" or "pictures"; the files of pictures are folders, and `slices` the names in them, in order.
        refused: patient -> why it cannot be taken.
    """

    cases: tuple[Case, ...]
    refused: Mapping[str, str]


def find_patients(data: Path) -> Found:
    """The patients of a folder in one of the layouts of this module.

    Raises:
        MedsegError: nothing there, names that do not match across folders, or a patient in two splits.
    """
    data = Path(data)
    if not data.is_dir():
        raise MedsegError(f"there is no folder {data}; give the folder that holds the patients")
    if (data / CASES).is_file():
        cases = [_listed(case) for case in read_cases(data / CASES)]
        return Found(tuple(cases), {})
    layouts = {split: data / split for split in SPLITS if split and _role_folders(data / split)}
    for split in SPLITS if layouts else ():
        if split and split not in layouts and (lone := _some_role_folders(data / split)):
            lacking = "PET" if "ct" in lone else "CT"
            raise MedsegError(f"{data / split} has no folder {lacking} of pictures; add it, or take {split} away")
    if not layouts and _role_folders(data):
        layouts = {"": data}
    if layouts:
        return _pictures(layouts)
    alone = _files_of(data)
    homes = [data] if alone else sorted(p for p in data.iterdir() if p.is_dir() and not p.name.startswith("."))
    cases, refused = [], {}
    for home in homes:
        try:
            if files := _patient(home):
                cases.append(Case(home.name, files, group=home.name, notes={"kind": "volume"}))
        except MedsegError as error:
            refused[home.name] = str(error)
    if not cases and not refused:
        looked = "<patient>/CT_image.nii.gz beside PET_image.nii.gz, or CT/<patient>_slice_<n>.png beside PET/"
        raise MedsegError(f"{data} holds no patients; expected {looked}")
    return Found(tuple(cases), refused)


def role_of(name: str) -> str:
    """What a file or folder is, by the words of its name: ct, pet, label, label_pet or ""; a mask goes by CT's grid."""
    words = set(re.split(r"[\W_]+", name.lower()))
    if words & WORDS["label"]:
        return "label_pet" if words & WORDS["pet"] else "label"
    return next((role for role in ("pet", "ct") if words & WORDS[role]), "")


def _listed(case: Case) -> Case:
    """A case of a list, whose patient is itself where nothing else is said."""
    if "arrays" in case.files:
        raise MedsegError(f"this is a cache that prepare made (case {case.id}); give the folder it was made of")
    for role in ("ct", "pet"):
        if role not in case.files:
            raise MedsegError(f"case {case.id} has no file {role!r}; name it in {CASES}")
    return Case(case.id, case.files, case.unit, case.split, {"kind": "volume", **case.notes})


def _files_of(home: Path) -> dict[str, list[Path]]:
    """Role -> volumes, zips and folders of a patient."""
    found: dict[str, list[Path]] = {}
    for path in sorted(home.iterdir()):
        is_series = path.is_dir() and any(p.is_file() and is_dicom(p) for p in path.iterdir())
        if path.name.startswith(".") or not (path.name.lower().endswith(VOLUMES) or is_series):
            continue
        if role := role_of(case_name(path)):
            found.setdefault(role, []).append(path)
    return found if "ct" in found or "pet" in found else {}


def _patient(home: Path) -> dict[str, Path]:
    """The files of a patient, none where the folder is none."""
    found = _files_of(home)
    if not found:
        return {}
    label = found.pop("label_pet", [])
    found.setdefault("label", label)
    for role in ("ct", "pet"):
        if not found.get(role):
            raise MedsegError(f"{home} has no {ROLES[role]}; put a file there whose name says {role}, or remove it")
    for role, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise MedsegError(f"{home} has {len(paths)} files for {ROLES[role]}: {names}; leave one of them")
    return {role: paths[0] for role, paths in found.items() if paths}


def _role_folders(home: Path) -> dict[str, Path]:
    """Role -> folder of pictures; none unless there are both CT and PET."""
    found = _some_role_folders(home)
    return found if {"ct", "pet"} <= set(found) else {}


def _some_role_folders(home: Path) -> dict[str, Path]:
    """Role -> folder of pictures, CT or PET among them."""
    if not home.is_dir():
        return {}
    found = {}
    for path in sorted(home.iterdir()):
        role = role_of(path.name)
        if role and path.is_dir() and any(is_picture(p) for p in path.iterdir()):
            found[role] = path
    return found if {"ct", "pet"} & set(found) else {}


def _pictures(layouts: Mapping[str, Path]) -> Found:
    cases: dict[str, Case] = {}
    for split, home in layouts.items():
        for case in _in_folders(home, split):
            first = cases.setdefault(case.id, case)
            if first is not case:
                said = f"patient {case.id} is in {first.split} and in {case.split}; a patient seen in training must"
                raise MedsegError(f"{said} not be scored: move all slices into one of them")
    return Found(tuple(cases.values()), {})


def _in_folders(home: Path, split: str) -> Iterator[Case]:
    """The patients of one set of folders."""
    folders = _role_folders(home)
    names = {role: {p.name for p in folder.iterdir() if is_picture(p)} for role, folder in folders.items()}
    for role, there in names.items():
        _check_names(folders["ct"], names["ct"], folders[role], there)
    slices: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(names["ct"]):
        match = SLICE.fullmatch(Path(name).stem)
        if match is None:
            raise MedsegError(
                f"{folders['ct'] / name} does not say its patient; rename it <patient>_slice_<number>.png"
            )
        slices.setdefault(match["patient"], []).append((int(match["number"]), name))
    for patient, found in slices.items():
        notes = {"kind": "pictures", "slices": [name for _, name in sorted(found)]}
        yield Case(patient, folders, group=patient, split=split, notes=notes)


def _check_names(ct: Path, of_ct: set[str], other: Path, there: set[str]) -> None:
    for lacking, names in ((other, of_ct - there), (ct, there - of_ct)):
        if names:
            more = f" and {len(names) - 1} more" * (len(names) > 1)
            raise MedsegError(f"{lacking} lacks {min(names)}{more}; the folders must hold the same names")


def labelled(cases: Sequence[Case]) -> list[Case]:
    """Those that have a mask.

    Raises:
        MedsegError: none has one.
    """
    found = [case for case in cases if "label" in case.files]
    if not found:
        raise MedsegError(f"none of {len(cases)} patients has a mask; put one beside its CT, such as CT_mask.nii.gz")
    return found
