"""Patients with known tumours: neither CT nor PET alone tells them from what only looks alike.

A tumour takes up FDG and is solid on CT, with a cold middle where it is large. What is hot and no tumour holds fluid,
as a bladder, and what is solid and cold is a benign mass. So CT alone takes masses for tumours, PET alone takes fluid
for them and loses the cold middles, and a threshold of SUV does the same. Some patients have no tumour.

OUT/<patient>/{CT_image,PET_image,CT_mask}.nii.gz and OUT/truth.json. CT and PET share the world, not the grid.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from medseg_core.cases import Case
from medseg_core.cohort import for_each
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import write_text, write_volume
from medseg_core.volume import Volume, resample

CT_MM, PET_MM = (2.0, 2.0, 4.0), (4.0, 4.0, 4.0)
SIZE_MM = (176.0, 144.0, 96.0)
AIR_HU, FAT_HU, MUSCLE_HU, BONE_HU, FLUID_HU, SOLID_HU = -1000.0, -90.0, 50.0, 600.0, 5.0, 80.0
BODY_SUV, TUMOUR_SUV, FLUID_SUV, COLD_SUV = 0.6, (4.0, 9.0), (5.0, 12.0), 0.8
CT_NOISE_HU, PET_NOISE = 12.0, 0.12  # standard deviations; of PET as a share of the value
BLUR_MM = 2.5  # of PET, a standard deviation: some 6 mm of full width at half maximum
MUSCLE, BONE_MM = 0.82, 10.0  # share of the body within its fat, and radius of its bone
COLD_FROM_MM = 12.0  # radius from which a tumour's middle is cold
BARE = 6  # every so many patients one has no tumour
TRUTH = "truth.json"


def phantom(out: Path, *, num_cases: int = 12, seed: int = 0) -> Path:
    """Writes patients, and in `truth.json` where their tumours lie, how large they are and what they take up.

    Returns:
        `out`, for `sources.find_patients`.

    Raises:
        MedsegError: a folder that holds something else.
    """
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / TRUTH).is_file() and not list(out.glob("journal*.jsonl")):
        raise MedsegError(f"{out} exists and is no phantom; give a new folder")
    cases = [Case(f"p{number:03d}", {}, notes={"number": number}) for number in range(num_cases)]
    outcome = for_each(cases, partial(_patient, out=out, seed=seed), out=out, config={"seed": seed})
    if outcome.done or not (out / TRUTH).is_file():
        truth = {case.id: _drawn(case.notes["number"], seed)[1] for case in cases}
        write_text(out / TRUTH, json.dumps(truth, indent=1) + "\n")
    return out


def _patient(case: Case, *, out: Path, seed: int) -> Mapping[str, Any]:
    body, objects, rng = _drawn(case.notes["number"], seed)
    ct_grid, pet_grid = _grid(CT_MM), _grid(PET_MM)
    hu, suv, tumour = _painted(ct_grid, body, objects)
    hu += rng.normal(0, CT_NOISE_HU, hu.shape)
    blurred = gaussian_filter(suv, [BLUR_MM / mm for mm in CT_MM])
    pet = resample(Volume(blurred.astype(np.float32), ct_grid.affine), pet_grid, antialias=True).voxels
    pet = np.maximum(pet * (1 + rng.normal(0, PET_NOISE, pet.shape)), 0)
    home = out / case.id
    write_volume(Volume(np.rint(hu).astype(np.int16), ct_grid.affine), home / "CT_image.nii.gz")
    write_volume(Volume(pet.astype(np.float32), pet_grid.affine), home / "PET_image.nii.gz")
    write_volume(Volume(tumour.astype(np.uint8), ct_grid.affine), home / "CT_mask.nii.gz")
    return {"tumours": sum(one["kind"] == "tumour" for one in objects)}


def _grid(spacing_mm: tuple[float, float, float]) -> Grid:
    """Axial slices in LPS order, as scanners write them, whose field of view is the same for CT and PET."""
    shape = tuple(round(size / mm) for size, mm in zip(SIZE_MM, spacing_mm, strict=True))
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = [(n - 1) / 2 * mm * sign for n, mm, sign in zip(shape, spacing_mm, (1, 1, -1), strict=True)]
    return Grid(shape, affine)


def _drawn(number: int, seed: int) -> tuple[np.ndarray, list[dict[str, Any]], np.random.Generator]:
    """A body, the balls in it that do not touch, centres in RAS+ mm, and the state of chance after drawing them.

    The body is half its width and depth, and where its bone is, all in mm.
    """
    rng = np.random.default_rng([seed, number, 0, 0])
    half_mm = np.array(SIZE_MM[:2]) / 2 * rng.uniform(0.75, 0.95, 2)
    turn = rng.uniform(0, 2 * np.pi)
    body = np.concatenate([half_mm, half_mm * 0.55 * (np.cos(turn), np.sin(turn))])
    kinds = ["fluid", "mass", *(["tumour"] * (0 if number % BARE == BARE - 1 else int(rng.integers(1, 4))))]
    objects: list[dict[str, Any]] = []
    while kinds:
        radius = float(rng.uniform(7, 18))
        reach = np.append(0.8 * half_mm, SIZE_MM[2] / 2) - radius - 3
        centre = rng.uniform(-1, 1, 3) * reach
        if (centre[:2] ** 2 / reach[:2] ** 2).sum() > 1:
            continue
        gaps = [np.linalg.norm(centre - one["centre_mm"]) - radius - one["radius_mm"] for one in objects]
        if min(gaps, default=9) > 6:
            uptake = {"tumour": TUMOUR_SUV, "fluid": FLUID_SUV, "mass": (COLD_SUV, COLD_SUV)}[kinds[-1]]
            about = {"kind": kinds.pop(), "centre_mm": centre.tolist(), "radius_mm": radius}
            objects.append({**about, "suv": float(rng.uniform(*uptake))})
        elif rng.random() < 0.01:  # no room is left
            kinds.pop()
    return body, objects, rng


def _painted(grid: Grid, body: np.ndarray, objects: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(X, Y, Z) HU, SUV and tumour on a grid, without noise."""
    axes = [grid.affine[i, i] * np.arange(n) + grid.affine[i, 3] for i, n in enumerate(grid.shape)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    wide, deep, bone_x, bone_y = body
    away = np.broadcast_to((x / wide) ** 2 + (y / deep) ** 2, grid.shape)
    hu = np.select([away < MUSCLE**2, away < 1], [MUSCLE_HU, FAT_HU], AIR_HU)
    suv = np.where(away < 1, BODY_SUV, 0.0)
    hu[np.broadcast_to((x - bone_x) ** 2 + (y - bone_y) ** 2 < BONE_MM**2, grid.shape)] = BONE_HU
    tumour = np.zeros(grid.shape, bool)
    for one in objects:
        cx, cy, cz = one["centre_mm"]
        distance = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)
        ball = distance <= one["radius_mm"]
        hu[ball] = FLUID_HU if one["kind"] == "fluid" else SOLID_HU
        suv[ball] = one["suv"]
        if one["kind"] == "tumour":
            tumour |= ball
            if one["radius_mm"] > COLD_FROM_MM:
                suv[distance <= one["radius_mm"] / 2] = COLD_SUV
    return hu, suv, tumour
