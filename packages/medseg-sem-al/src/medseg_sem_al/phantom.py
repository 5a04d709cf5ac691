"""Micrographs of a battery's composite whose phases are known: brightness alone does not tell them apart.

Active material (AM) lies in smooth bright grains, solid electrolyte (SE) in grains that are as bright where the shading
is strong but have texture, and carbon is the dark rest between. A sequence is a series of cuts through the same grains.

OUT/raw/<sequence>_<frame>.tif of 8 bits with the pixel's size, OUT/labeled/<sequence>_<frame>.png in the colours of
the original for some of them, and OUT/truth.json: the area of each phase in each frame.
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
from medseg_core.io import write_picture, write_text
from medseg_core.volume import Picture
from medseg_sem_al.colours import ORIGINAL, rgb

PIXEL_NM = 20.0
FRAMES, STEP = 3, 4  # cuts of a sequence, and pixels from one to the next
GREYS = {"carbon": 0.22, "SE": 0.5, "AM": 0.62}
SHADING, TEXTURE, GRAIN = 0.22, 0.10, 3.0  # across the picture, standard deviation of SE's, its size in pixels
NOISE, BLUR = 0.06, 0.8  # standard deviations: of the value, in pixels
RADIUS = (0.04, 0.14)  # of the picture's edge
COVERED = 0.7  # share of the picture that grains take, about
TRUTH = "truth.json"


def phantom(out: Path, *, num_images: int = 24, num_labelled: int = 12, size: int = 256, seed: int = 0) -> Path:
    """Writes micrographs, masks of the first frames of the sequences, and the true areas.

    Returns:
        `out`, for `index.build_index`.

    Raises:
        MedsegError: a folder that holds something else.
    """
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / TRUTH).is_file() and not list(out.glob("journal*.jsonl")):
        raise MedsegError(f"{out} exists and is no phantom; give a new folder")
    how = {"num_labelled": num_labelled, "size": size, "seed": seed}
    cases = []
    for number in range(num_images):
        sequence, frame = divmod(number, FRAMES)
        notes = {"sequence": sequence, "frame": frame, "has_mask": number < num_labelled}
        cases.append(Case(f"s{sequence:02d}_{frame:03d}", {}, notes=notes))
    outcome = for_each(cases, partial(_micrograph, out=out, size=size, seed=seed), out=out, config=how)
    for name, why in outcome.failed.items():
        raise MedsegError(f"{name} could not be made: {why}")
    if outcome.done or not (out / TRUTH).is_file():
        truth = {case.id: _areas(_phases(case, size, seed)) for case in cases}
        write_text(out / TRUTH, json.dumps({"pixel_nm": PIXEL_NM, "areas": truth}, indent=1) + "\n")
    return out


def _micrograph(case: Case, *, out: Path, size: int, seed: int) -> Mapping[str, Any]:
    phases = _phases(case, size, seed)
    rng = np.random.default_rng([seed, case.notes["sequence"], case.notes["frame"], 1])
    grey = np.array(list(GREYS.values()))[phases]
    texture = gaussian_filter(rng.normal(size=(size, size)), GRAIN)
    grey = grey + np.where(phases == 1, TEXTURE * texture / texture.std(), 0)
    angle = np.random.default_rng([seed, case.notes["sequence"], 0, 2]).uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    grey = grey + SHADING * (np.cos(angle) * x + np.sin(angle) * y)
    grey = gaussian_filter(grey, BLUR) + rng.normal(0, NOISE, grey.shape)
    pixels = np.clip(np.rint(255 * grey), 0, 255).astype(np.uint8)
    write_picture(Picture(pixels, PIXEL_NM), out / "raw" / f"{case.id}.tif")
    if case.notes["has_mask"]:
        colours = np.array([rgb(code) for code in ORIGINAL], np.uint8)
        write_picture(Picture(colours[phases]), out / "labeled" / f"{case.id}.png")
    return {}


def _phases(case: Case, size: int, seed: int) -> np.ndarray:
    """(size, size) uint8 of a cut through the balls of a sequence: 0 carbon, 1 SE, 2 AM."""
    rng = np.random.default_rng([seed, case.notes["sequence"], 0, 0])
    depth = size // 2
    z = depth / 2 + STEP * (case.notes["frame"] - FRAMES / 2)
    y, x = np.mgrid[:size, :size]
    phases = np.zeros((size, size), np.uint8)
    num = round(COVERED * size * size * depth / (4 / 3 * np.pi * (np.mean(RADIUS) * size) ** 3))
    for kind in rng.integers(1, 3, num):
        radius = rng.uniform(*RADIUS) * size
        centre = rng.uniform((0, 0, 0), (depth, size, size))
        reach2 = radius**2 - (z - centre[0]) ** 2
        if reach2 > 0:
            phases[(y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= reach2] = kind
    return phases


def _areas(phases: np.ndarray) -> dict[str, int]:
    """Pixels of each phase."""
    return dict(zip(GREYS, np.bincount(phases.ravel(), minlength=len(GREYS)).tolist(), strict=True))
