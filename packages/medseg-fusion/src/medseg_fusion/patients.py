"""One patient on one grid: CT in HU and PET in SUV from volumes and DICOM, or both in 8 bits from pictures of slices.

Axes: A B the two axes of a slice, X Y of RAS voxels or H W of a picture; S slices, last.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg_core.archive import unpacked
from medseg_core.cases import Case
from medseg_core.dicom import is_dicom
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import read_picture, read_volume
from medseg_core.volume import Volume, resample
from medseg_fusion.sources import ROLES
from medseg_fusion.suv import read_suv

ORIENTATION = "RAS"
HU_SUV, BITS = "HU and SUV", "8 bits"
AIR_HU = -200.0  # a CT without any voxel below it shows no air
LARGEST_SUV = 200.0  # nothing in a patient takes up that much but a bladder; Bq/ml and kBq/ml go beyond
SOFT_HU, TYPICAL_SUV = (-200.0, 200.0), 1.5  # 19 patients have medians of 0.37 to 0.80; times 5, as kBq/ml, 2 to 4
COVERED = 0.5  # share of the CT's voxels that PET must reach, below which it is told

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Patient:
    """What is known of a patient.

    Args:
        id: the patient.
        ct: (A, B, S) int16 HU, or uint8 where `unit` is "8 bits".
        pet: (A, B, S) float32 SUV, or uint8.
        label: (A, B, S) uint8, 1 where tumour is; None where there is no mask.
        unit: "HU and SUV", or "8 bits".
        spacing: mm along A, B, S; 1 pixel each in pictures.
        affine: (4, 4) index to RAS+ mm, None for pictures.
        home: the CT's own grid, on which masks are written; None for pictures.
        slices: names of the pictures, one for each slice.
        covered: share of the voxels that lie in the PET's field of view.
        present: whether there are CT and PET; of what is missing the array is 0.
    """

    id: str
    ct: np.ndarray
    pet: np.ndarray
    label: np.ndarray | None
    unit: str
    spacing: tuple[float, float, float]
    affine: np.ndarray | None = None
    home: Grid | None = None
    slices: tuple[str, ...] = ()
    covered: float = 1.0
    present: tuple[bool, bool] = (True, True)


def read_patient(case: Case, *, spacing_mm: tuple[float, float, float] | None = None) -> Patient:
    """A patient of `sources.find_patients` on one grid, checked; CT or PET may be missing.

    Args:
        spacing_mm: of the grid of volumes, along right-left, back-front, feet-head; None is the CT's own.

    Raises:
        MedsegError: what cannot be what its name says: NaN, CT and PET swapped or without a common place, PET that is
            no SUV, a mask that is neither 0 and 1 nor 0 and 255, pictures of different sizes or of other kinds.
    """
    if case.notes.get("kind") == "pictures":
        return _of_pictures(case)
    files, label, covered = case.files, None, 1.0
    ct = _read(files["ct"]) if "ct" in files else None
    pet = read_pet(files["pet"]) if "pet" in files else None
    check_units(ct, pet, files)
    home = (ct or pet).grid
    grid = home.oriented(ORIENTATION, spacing_mm)
    if ct and pet:
        field = Volume(np.ones(pet.voxels.shape, np.uint8), pet.affine)
        covered = float(resample(field, grid, how="label", outside=0).voxels.mean())
    if not covered:
        both = f"{files['ct']} and {files['pet']}"
        raise MedsegError(f"{both} have no place in common; are they of one patient, in one frame?")
    if "label" in files:
        mask = _read(files["label"])
        label = _tumour(mask.like(binary(mask.voxels, files["label"])), grid, home, files["label"])
    return Patient(
        id=case.id,
        ct=_hu(ct, grid) if ct else np.zeros(grid.shape, np.int16),
        pet=_suv(pet, grid) if pet else np.zeros(grid.shape, np.float32),
        label=label,
        unit=HU_SUV,
        spacing=grid.spacing_mm,
        affine=grid.affine,
        home=home,
        covered=covered,
        present=(ct is not None, pet is not None),
    )


def _tumour(mask: Volume, grid: Grid, home: Grid, path: Path) -> np.ndarray:
    """uint8 on the grid.

    Raises:
        MedsegError: tumour of which nothing lies in the CT.
    """
    label = resample(mask, grid, how="label", outside=0).voxels
    if mask.voxels.any() and not label.any():
        if not resample(mask, home, how="label", outside=0).voxels.any():
            raise MedsegError(f"{path} has tumour and none of it lies in the CT; are they in one frame?")
        spacing = "x".join(f"{mm:.3g}" for mm in grid.spacing_mm)
        log.warning("%s has tumour that is lost on a grid of %s mm; take a finer one", path, spacing)
    return label


def doubt_of_suv(patient: Patient) -> str:
    """Why PET may be in kBq/ml, "" where it is not: in soft tissue it is then some five times what SUV are."""
    if patient.unit == BITS or not all(patient.present):
        return ""
    values = patient.pet[(patient.ct > SOFT_HU[0]) & (patient.ct < SOFT_HU[1])]
    typical = float(np.median(values)) if values.size else 0.0
    if typical < TYPICAL_SUV:
        return ""
    return f"PET is {typical:.2g} in the median of soft tissue, where SUV are some 0.4 to 0.8; is it in kBq/ml?"


def _hu(ct: Volume, grid: Grid) -> np.ndarray:
    """int16; what lies beyond is cut."""
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(resample(ct, grid, antialias=True).voxels), limits.min, limits.max).astype(np.int16)


def _suv(pet: Volume, grid: Grid) -> np.ndarray:
    """float32, 0 beyond the field of view."""
    return resample(pet, grid, outside=0, antialias=True).voxels.astype(np.float32)


def read_pet(path: Path) -> Volume:
    """SUV from a volume that holds it, or from a DICOM series in a folder or a zip."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        with _series(path, "PT") as folder:
            return read_suv(folder)
    return _read(path)


def check_units(ct: Volume | None, pet: Volume | None, files: Mapping[str, Path]) -> None:
    """HU and SUV have ranges that betray what is neither.

    Raises:
        MedsegError: swapped files, PET in Bq/ml or kBq/ml, or negative PET.
    """
    low_ct = float(ct.voxels.min()) if ct else AIR_HU
    if low_ct > AIR_HU:
        log.warning("%s has nothing below %g, so no air; is it in HU?", files["ct"], low_ct)
    if pet is None:
        return
    of_pet, low, high = files["pet"], float(pet.voxels.min()), float(pet.voxels.max())
    if low_ct >= 0 and low < AIR_HU:
        raise MedsegError(f"{of_pet} goes down to {low:g}, as HU do, and {files['ct']} not below 0: swap CT and PET")
    if low < -1:
        raise MedsegError(f"{of_pet} goes down to {low:g}, and no SUV is below 0; is it CT, or a wrong intercept?")
    if high > LARGEST_SUV:
        fix = "give SUV, or the DICOM series, whose tags say the dose and the weight"
        raise MedsegError(f"{of_pet} goes up to {high:g}, beyond any SUV: Bq/ml or kBq/ml? {fix}")
    if high <= 0:
        raise MedsegError(f"{of_pet} is 0 everywhere; export it again")


def binary(values: np.ndarray, path: Path) -> np.ndarray:
    """uint8 of 0 and 1 from 0 and 1, or from 0 and 255.

    Raises:
        MedsegError: other values.
    """
    found = np.unique(values)
    if not (np.isin(found, (0, 1)).all() or np.isin(found, (0, 255)).all()):
        some = ", ".join(f"{value:g}" for value in found[:5])
        raise MedsegError(f"{path} holds {some}; a mask of tumour is 0 and 1, or 0 and 255: write one as {path.name}")
    return (values > 0).astype(np.uint8)


def _read(path: Path) -> Volume:
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        with _series(path, "CT") as folder:
            return read_volume(folder)
    volume = read_volume(path)
    if volume.voxels.dtype.kind == "f" and not np.isfinite(volume.voxels).all():
        raise MedsegError(f"{path} holds voxels that are no numbers (NaN or infinite); export it again")
    return volume


@contextmanager
def _series(path: Path, modality: str) -> Iterator[Path]:
    """The folder with the DICOM files of a modality, CT or PT, in a folder or a zip."""
    from pydicom import dcmread

    with unpacked(path) as folder:
        firsts: dict[Path, Path] = {}
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.parent not in firsts and is_dicom(file):
                firsts[file.parent] = file
        said = {
            home: str(dcmread(file, specific_tags=["Modality"]).get("Modality", "")) for home, file in firsts.items()
        }
        homes = [home for home, found in said.items() if found == modality]
        if len(homes) != 1:
            if not said:
                raise MedsegError(
                    f"{path} holds no volume, picture or DICOM file; give the file itself or its own folder"
                )
            found = ", ".join(sorted(said.values()))
            raise MedsegError(f"{path} holds {len(homes)} series of {modality} (found: {found}); give one of them")
        yield homes[0]


def _of_pictures(case: Case) -> Patient:
    """The slices of a patient as one stack."""
    names, stacks = tuple(case.notes["slices"]), {}
    for role, folder in case.files.items():
        stacks[role] = np.stack(_alike([folder / name for name in names], case), -1)
    label = None
    if "label" in stacks:
        masks = zip(np.moveaxis(stacks["label"], -1, 0), names, strict=True)
        label = np.stack([binary(mask, case.files["label"] / name) for mask, name in masks], -1)
    shape = stacks["ct" if "ct" in stacks else "pet"].shape
    ct, pet = (stacks.get(role, np.zeros(shape, np.uint8)) for role in ("ct", "pet"))
    present = ("ct" in stacks, "pet" in stacks)
    return Patient(case.id, ct, pet, label, BITS, (1.0, 1.0, 1.0), slices=names, present=present)


def _alike(files: Sequence[Path], case: Case) -> list[np.ndarray]:
    """The planes of a role, all of the size of the patient's first one.

    Raises:
        MedsegError: a picture of another size or kind.
    """
    first = next(iter(case.files.values())) / case.notes["slices"][0]
    size, planes = _plane(first).shape, [_plane(file) for file in files]
    for file, plane in zip(files, planes, strict=True):
        if plane.shape != size:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (plane.shape, size))
            raise MedsegError(f"{file} and {first} differ in size, {sizes}; export them alike")
    return planes


def _plane(path: Path) -> np.ndarray:
    """(H, W) uint8 of a grey picture."""
    pixels = read_picture(path).pixels
    if pixels.ndim == 3 and (pixels.shape[2] == 2 or (pixels[..., :1] == pixels[..., :3]).all()):  # grey, and alpha
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise MedsegError(f"{path} has colours; {' and '.join(ROLES.values())} must be grey pictures: convert it")
    if pixels.dtype != np.uint8:
        fix = "16-bit pictures do not say their units: give the NIfTI or DICOM that they were made of, or 8 bits"
        raise MedsegError(f"{path} holds {pixels.dtype}; {fix}")
    return pixels
