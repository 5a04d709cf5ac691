"""Slices that are nearly the same picture in two patients: a patient under two names, or a copy in another split.

A slice is described by CT and PET, each shrunk to 16 x 16 means of 0 to 1. Axes: A B S as in `patients`, D numbers.
"""

from dataclasses import dataclass, field

import numpy as np

from medseg_core.alike import pairs_within, shrunk
from medseg_fusion.patients import BITS, Patient

EDGE = 16
WINDOW_HU, CLIP_SUV = (-160.0, 240.0), (0.0, 10.0)
ALIKE = 0.02  # root mean square; slices of two patients differ by 0.056 at least, one moved by a pixel by 0.013
FLAT = 0.02  # standard deviation, below which a slice shows nothing that could be told apart


@dataclass
class Slices:
    """The slices of a cohort, patient by patient."""

    rows: list[np.ndarray] = field(default_factory=list)
    names: list[tuple[str, int]] = field(default_factory=list)

    def add(self, patient: Patient) -> None:
        """Describes a patient's slices."""
        for k in range(patient.ct.shape[2]):
            row = described(patient, k)
            if row.std() > FLAT:
                self.rows.append(row)
                self.names.append((patient.id, k))

    def alike(self) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        """Pairs of (patient, slice) of different patients that are nearly the same, one for each pair of patients."""
        found: dict[tuple[str, str], tuple[tuple[str, int], tuple[str, int]]] = {}
        for one, other in pairs_within(self.rows, ALIKE):
            first, second = self.names[one], self.names[other]
            if first[0] != second[0]:
                found.setdefault((first[0], second[0]), (first, second))
        return list(found.values())


def described(patient: Patient, k: int) -> np.ndarray:
    """(D,) float32 of a slice."""
    ranges = ((0.0, 255.0),) * 2 if patient.unit == BITS else (WINDOW_HU, CLIP_SUV)
    planes = zip((patient.ct, patient.pet), ranges, strict=True)
    parts = [shrunk(np.clip((array[..., k] - low) / (high - low), 0, 1), EDGE) for array, (low, high) in planes]
    return np.concatenate(parts).ravel().astype(np.float32)
