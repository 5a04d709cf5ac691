"""What a network loses where PET does not lie on CT: Dice over moves of 0 to 20 mm and turns of 0 to 10 degrees.

Axes: A B S as in `patients`; a move goes in a direction of its own for each patient, the same for every network.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import affine_transform

from medseg_core.cases import Case
from medseg_core.figures import plain, save
from medseg_core.store import Arrays
from medseg_fusion.patients import BITS
from medseg_fusion.predict import Predictor

MOVES_MM, TURNS_DEGREES = (2.0, 5.0, 10.0, 15.0, 20.0), (2.0, 5.0, 10.0)
STEPS = ((0.0, 0.0), *((mm, 0.0) for mm in MOVES_MM), *((0.0, degrees) for degrees in TURNS_DEGREES))


def curve(cases: Sequence[Case], predictor: Predictor) -> Iterator[dict[str, Any]]:
    """A row for each patient with tumour and each step: case, mm, degrees, dice. In pictures mm are pixels."""
    for case in cases:
        arrays = Arrays(case.files["arrays"])
        ct, pet, label = (np.asarray(arrays[name]) for name in ("ct", "pet", "label"))
        if not label.any():
            continue
        direction = direction_of(case.id, planar=arrays.about["unit"] == BITS)
        for mm, degrees in STEPS:
            there = moved(pet, mm * direction, degrees, spacing=arrays.about["spacing"])
            mask = predictor.probabilities(ct, there) >= predictor.threshold
            total = int(mask.sum()) + int(label.sum())
            dice = 2 * int((mask & (label > 0)).sum()) / total
            yield {"case": case.id, "mm": mm, "degrees": degrees, "dice": dice}


def direction_of(name: str, *, planar: bool) -> np.ndarray:
    """(3,) of length 1, by the patient's name; within the slices where these have no known distance."""
    drawn = np.random.default_rng([crc32(name.encode()), 0, 0, 0]).normal(size=3)
    drawn[2] *= not planar
    return drawn / np.linalg.norm(drawn)


def moved(pet: np.ndarray, shift_mm: np.ndarray, degrees: float, *, spacing: Sequence[float]) -> np.ndarray:
    """(A, B, S) PET turned within its slices about their middle, then moved; linear, 0 from beyond."""
    if not shift_mm.any() and not degrees:
        return pet
    angle, mm = np.deg2rad(degrees), np.asarray(spacing, float)
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.diag(1 / mm) @ turn @ np.diag(mm)  # from where a voxel is to where its value was
    middle = (np.array(pet.shape) - 1) / 2
    offset = middle - matrix @ (middle + shift_mm / mm)
    return affine_transform(pet, matrix, offset, order=1, output=pet.dtype)


def means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The mean Dice of each step, over patients and seeds."""
    found = []
    for mm, degrees in STEPS:
        values = [row["dice"] for row in rows if (row["mm"], row["degrees"]) == (mm, degrees)]
        if values:
            found.append({"mm": mm, "degrees": degrees, "dice": float(np.mean(values)), "n": len(values)})
    return found


def draw(curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> Path:
    """Two pictures side by side: moves and turns, a line for each network."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, by, other, words in zip(
        both, ("mm", "degrees"), ("degrees", "mm"), ("PET moved by mm", "PET turned by degrees"), strict=True
    ):
        for name, steps in curves.items():
            line = [(step[by], step["dice"]) for step in steps if not step[other]]
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3.5, label=name)
        axes.set_xlabel(words)
        plain(axes)
    both[0].set_ylabel("mean Dice")
    both[0].set_ylim(bottom=0)
    both[1].legend(frameon=False, fontsize=8)
    return save(figure, path)
