"""Where the DICOM of each patient lies, as folder or zip, and which contours go with it.

Names of cases are those of folders and zips: nothing is taken from a header, which may hold a patient's name.
"""

import logging
import os
from pathlib import Path

from medseg_cardiac.contours import NAME
from medseg_core.cases import Case
from medseg_core.dicom import is_dicom
from medseg_core.errors import MedsegError

CONTOURS = "contours"
ZIP = "dicom.zip"  # says nothing of the patient, so its folder does

log = logging.getLogger(__name__)


def find_patients(source: Path, *, contours: Path | None = None) -> list[Case]:
    """A case per patient with the file `dicom` (a folder or a zip) and, where there are any, `contours` (a folder).

    Args:
        source: a folder of DICOM files, a zip of them, or a folder of such folders and zips, one per patient; in a
            patient's folder the files may lie in subfolders or in `dicom.zip`.
        contours: a folder of contours for one patient, or of folders named like the cases; None looks for `contours`
            beside the files.

    Raises:
        MedsegError: nothing there, no DICOM in it, contours of one patient for several, or two of one name.
    """
    source = Path(source)
    if not source.exists():
        raise MedsegError(f"there is no file or folder {source}; give a folder of DICOM files, or a zip of them")
    if contours is not None and not Path(contours).is_dir():
        raise MedsegError(f"there is no folder of contours {contours}")
    source = Path(os.path.abspath(source))  # noqa: PTH100 resolve() would take the name of what a link leads to
    if source.is_file() or _dicom_of(source, deep=False):
        found = [source]
    else:
        inside = sorted(p for p in source.iterdir() if not p.name.startswith("."))
        found = [p for p in inside if (p.is_dir() and _dicom_of(p)) or (p.is_file() and p.suffix.lower() == ".zip")]
        others = [p.name for p in inside if p.is_dir() and p not in found and p.name != CONTOURS]
        if found and others:
            log.warning("%s: no DICOM in %s", source, ", ".join(others))
    if not found:
        raise MedsegError(
            f"{source} holds no DICOM; give a folder of DICOM files, a zip, or a folder of one per patient"
        )
    cases: dict[str, Case] = {}
    for path in found:
        name = _name(path)
        if name in cases:
            raise MedsegError(f"{path} and {cases[name].files['dicom']} would both be {name}; rename one of them")
        files = {"dicom": path if path.is_file() else _dicom_of(path)}
        beside = _contours_of(path, name, contours, alone=len(found) == 1)
        cases[name] = Case(name, files | ({CONTOURS: beside} if beside else {}), group=name)
    return list(cases.values())


def _name(path: Path) -> str:
    if path.is_dir():
        return path.name
    return path.parent.name if path.name.lower() == ZIP else path.stem


def _dicom_of(folder: Path, *, deep: bool = True) -> Path | None:
    """The folder, or the zip in it, that holds a patient's files; `deep` looks into subfolders too."""
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if any(is_dicom(p) for p in inside if p.is_file()):
        return folder
    if (folder / ZIP).is_file():
        return folder / ZIP
    zips = [p for p in inside if p.suffix.lower() == ".zip"]
    if deep and len(zips) == 1:
        return zips[0]
    deeper = [p for p in inside if p.is_dir()] if deep else []
    return folder if any(is_dicom(p) for inner in deeper for p in inner.iterdir() if p.is_file()) else None


def _contours_of(path: Path, name: str, contours: Path | None, *, alone: bool) -> Path | None:
    """The folder of a patient's contours, or None."""
    if contours is None:
        home = path if path.is_dir() else path.parent
        own = [home / CONTOURS / name, path.parent / CONTOURS / name]
        if path.is_dir() or path.name.lower() == ZIP or alone:
            own.append(home / CONTOURS)
    else:
        if _has_contours(contours) and not alone:
            raise MedsegError(
                f"{contours} holds contours of one patient, and there are several; make a folder for each: "
                f"{Path(contours) / name}"
            )
        own = [Path(contours) / name / CONTOURS, Path(contours) / name, Path(contours)]
    return next((folder for folder in own if _has_contours(folder)), None)


def _has_contours(folder: Path) -> bool:
    return Path(folder).is_dir() and any(NAME.fullmatch(p.name) for p in Path(folder).iterdir())
