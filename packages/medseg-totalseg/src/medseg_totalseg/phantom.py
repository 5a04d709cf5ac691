"""A small CT cohort with analytic organs, written as a released folder: the truth is known without any grid."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from medseg_core.cases import Case
from medseg_core.cohort import JOURNAL, for_each
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import write_text, write_volume
from medseg_core.volume import Volume
from medseg_totalseg.labels import CLASS_LISTS

FIELD_MM = (320.0, 230.0, 320.0)
GRIDS = (  # orientation, and spacing along right-left, back-front, feet-head in mm
    ("RAS", (5.5, 5.5, 5.0)),
    ("LPS", (6.0, 6.0, 5.0)),
    ("LAS", (5.0, 5.0, 7.0)),
    ("RPS", (5.5, 5.5, 6.0)),
    ("PIR", (6.0, 5.0, 5.5)),
    ("RAI", (5.0, 6.0, 6.0)),
)
AIR_HU, FAT_HU, BONE_HU = -1000.0, -90.0, 350.0
NOISE_HU, BLUR_MM = 12.0, 2.0
COLUMNS = "image_id;age;gender;institute;study_type;split;manufacturer;scanner_model;kvp;pathology;pathology_location"

# Centre and half axes, or way and radius, in mm: x to the right, y to the front, z to the head. Later ones cover
# earlier ones. Ribs and spine carry no label: a released folder does not name all that a scan shows either.
_RIB = ((-14, -88, 70), (-85, -72, 62), (-122, -25, 50), (-118, 25, 36), (-80, 68, 22))
_MODEL: tuple[tuple[str, float, tuple, tuple], ...] = (
    ("ribs", 450, (*_RIB,), (5.5,)),
    ("ribs", 450, (*((-x, y, z) for x, y, z in _RIB),), (5.5,)),
    ("lung_lower_lobe_left", -820, ((-68, 2, 105),), (48, 68, 78)),
    ("lung_lower_lobe_right", -820, ((68, 2, 105),), (48, 68, 78)),
    ("heart", 200, ((-12, 32, 92),), (40, 38, 42)),
    ("liver", 120, ((62, 12, 5),), (64, 68, 52)),
    ("spleen", 190, ((-92, -35, 12),), (27, 36, 38)),
    ("stomach", 40, ((-48, 42, 12),), (38, 36, 38)),
    ("kidney_right", 280, ((58, -52, -48),), (25, 23, 42)),
    ("kidney_left", 280, ((-58, -52, -38),), (25, 23, 42)),
    ("autochthon_left", 70, ((-32, -76, -150), (-32, -80, 0), (-30, -78, 160)), (16,)),
    ("autochthon_right", 70, ((32, -76, -150), (32, -80, 0), (30, -78, 160)), (16,)),
    ("spine", BONE_HU, ((0, -62, -90), (0, -68, 0), (0, -66, 160)), (17,)),
    ("hip_left", 450, ((-86, -25, -125),), (28, 42, 42)),
    ("hip_right", 450, ((86, -25, -125),), (28, 42, 42)),
    ("urinary_bladder", 5, ((0, 25, -130),), (36, 32, 30)),
    ("inferior_vena_cava", 230, ((20, -28, 60), (24, -34, 0), (20, -36, -95)), (11,)),
    ("aorta", 380, ((-12, -36, 160), (-14, -38, 20), (-8, -36, -95)), (11,)),
    ("portal_vein_and_splenic_vein", 320, ((52, 8, 14), (14, -2, -16), (-30, -12, -6), (-72, -26, 16)), (9,)),
)
_IDS = {name: label for label, name in CLASS_LISTS["v2"].items()}

PHANTOM_LABELS: dict[int, str] = {
    _IDS[name]: name for name in sorted({s[0] for s in _MODEL} & _IDS.keys(), key=_IDS.get)
}
"""id -> name of the structures in a phantom, as TotalSegmentator v2 counts them."""


@dataclass(frozen=True)
class Structure:
    """An ellipsoid (one point, three half axes) or a tube (a way of several points, one radius), in mm, RAS+."""

    name: str
    hu: float
    points_mm: np.ndarray
    radii_mm: np.ndarray

    def contains(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) places -> (...) bool."""
        if len(self.points_mm) == 1:
            return (((points_mm - self.points_mm[0]) / self.radii_mm) ** 2).sum(-1) <= 1
        near = np.full(points_mm.shape[:-1], np.inf)
        for start, stop in zip(self.points_mm[:-1], self.points_mm[1:], strict=True):
            way = stop - start
            share = np.clip((points_mm - start) @ way / (way @ way), 0, 1)
            near = np.minimum(near, ((points_mm - start - share[..., None] * way) ** 2).sum(-1))
        return near <= self.radii_mm[0] ** 2


@dataclass(frozen=True)
class Anatomy:
    """One made-up patient: what is at any place, whatever the grid."""

    body: Structure
    structures: tuple[Structure, ...]

    def index_at(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) places in RAS+ mm -> (...) uint8: 0 air, 1 body fat, from 2 on the structures in their order."""
        inside = self.body.contains(points_mm * (1, 1, 0))
        index = inside.astype(np.uint8)
        for number, structure in enumerate(self.structures, 2):
            index[structure.contains(points_mm) & inside] = number
        return index

    def labels_of(self, index: np.ndarray) -> np.ndarray:
        """What `index_at` gave, as uint8 label ids of TotalSegmentator v2; what has no label is 0."""
        return np.array([0, 0, *(_IDS.get(s.name, 0) for s in self.structures)], np.uint8)[index]

    def hu_of(self, index: np.ndarray) -> np.ndarray:
        """What `index_at` gave, as float32 HU without noise."""
        return np.array([AIR_HU, self.body.hu, *(s.hu for s in self.structures)], np.float32)[index]


def anatomy(number: int, *, seed: int = 0) -> Anatomy:
    """Patient `number`: body, places, sizes and HU vary by some percent and some mm from one to the next."""
    rng = np.random.default_rng([seed, number, 0, 0])
    stretch, shift_mm = rng.uniform(0.93, 1.07, 3), rng.uniform(-6, 6, 3)
    body = Structure("body", FAT_HU, shift_mm[None] * (1, 1, 0), np.array([150.0, 106.0, 1.0]) * stretch)
    structures = []
    for name, hu, points, radii in _MODEL:
        moved = (np.array(points, float) + rng.uniform(-4, 4, 3)) * stretch + shift_mm
        sizes = np.array(radii, float) * rng.uniform(0.94, 1.06, len(radii))
        structures.append(Structure(name, hu + rng.uniform(-8, 8), moved, sizes * (stretch if len(sizes) == 3 else 1)))
    return Anatomy(body, tuple(structures))


def phantom(out: Path, *, num_cases: int = 6, seed: int = 0) -> Path:
    """Writes a cohort as `out/s0000/{ct.nii.gz,segmentations/<name>.nii.gz}` with official splits in `out/meta.csv`.

    About 60 voxels an edge, six orientations and spacings in turn, 16 structures that never overlap. A folder that the
    same call began is gone on with.

    Args:
        num_cases: how many patients. From three on there are validation and test cases, a sixth each.
        seed: equal seeds give equal files; a patient does not depend on how many there are.

    Returns:
        `out`.

    Raises:
        MedsegError: `out` holds something else, or the disk refuses.
    """
    if num_cases < 1:
        raise MedsegError(f"a phantom has at least one case, got num_cases {num_cases}")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
        raise MedsegError(f"{out} exists and is no phantom; give a new folder, real scans are not written over")
    cases = [Case(id=f"s{i:04d}", files={}, notes={"number": i}) for i in range(num_cases)]
    outcome = for_each(cases, partial(_write_case, out=out, seed=seed), out=out, config={"phantom": 1, "seed": seed})
    for name, reason in outcome.failed.items():
        raise MedsegError(f"phantom {name}: {reason}")
    write_text(out / "meta.csv", _meta(num_cases))
    return out


def grid_of(number: int) -> Grid:
    """The grid that patient `number` is scanned on."""
    orientation, spacing_mm = GRIDS[number % len(GRIDS)]
    shape = np.rint(np.array(FIELD_MM) / spacing_mm).astype(int)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * spacing_mm
    return Grid(tuple(shape), affine).oriented(orientation)


def _write_case(case: Case, *, out: Path, seed: int) -> Mapping[str, Any]:
    number = case.notes["number"]
    patient, grid = anatomy(number, seed=seed), grid_of(number)
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    points_mm = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = patient.index_at(points_mm)
    hu = gaussian_filter(patient.hu_of(inside), BLUR_MM / np.array(grid.spacing_mm))
    hu += np.random.default_rng([seed, number, 1, 0]).normal(0, NOISE_HU, hu.shape)
    ct = Volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), grid.affine)
    label = patient.labels_of(inside)
    write_volume(ct, out / case.id / "ct.nii.gz")
    for label_id, name in PHANTOM_LABELS.items():
        mask = ct.like((label == label_id).astype(np.uint8))
        write_volume(mask, out / case.id / "segmentations" / f"{name}.nii.gz")
    return {"structures": len(PHANTOM_LABELS)}


def _meta(num_cases: int) -> str:
    held = max(1, round(num_cases / 6)) if num_cases > 2 else 0
    splits = ["train"] * (num_cases - 2 * held) + ["val"] * held + ["test"] * held
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    writer.writerow(COLUMNS.split(";"))
    for number, split in enumerate(splits):
        writer.writerow([f"s{number:04d}", "", "", "phantom", "ct analytic organs", split, *[""] * 5])
    return text.getvalue()
