"""Strain of the myocardium over the cycle, from displacements.

Axes: T frames, h w a plane; D the two components of a displacement, along array axes in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg_cardiac.fields import green_lagrange, radial_circumferential
from medseg_core.errors import MedsegError


@dataclass(frozen=True, eq=False)
class Strain:
    """Green-Lagrange strain over the cycle, 0.1 for 10 %.

    Attributes:
        radial, circumferential: (T,) means over the myocardium.
        num_pixels: of the myocardium.
    """

    radial: np.ndarray
    circumferential: np.ndarray
    num_pixels: int

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Both by name."""
        return {"radial": self.radial, "circumferential": self.circumferential}

    def peaks(self) -> dict[str, float]:
        """The largest radial and the smallest circumferential strain of the cycle: thickening and shortening."""
        return {"peak_radial": float(self.radial.max()), "peak_circumferential": float(self.circumferential.min())}


def strain_maps(
    flows: np.ndarray, centre: Sequence[float], spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(T, h, w) radial and circumferential strain about a centre.

    Args:
        flows: (T, D, h, w), ED to each frame, on the grid of ED.
        centre: (h, w) of the left ventricle at ED.
    """
    tensor = green_lagrange(torch.from_numpy(np.asarray(flows, np.float64)), spacing_mm)
    radial, across = radial_circumferential(tensor, centre, spacing_mm)
    return radial.numpy(), across.numpy()


def mean_strain(flows: np.ndarray, myo: np.ndarray, spacing_mm: tuple[float, float]) -> Strain:
    """Strain over the myocardium of one slice, about the middle of its outline.

    Args:
        flows: (T, D, h, w).
        myo: (h, w) bool at ED.

    Raises:
        MedsegError: nothing is marked.
    """
    if not myo.any():
        raise MedsegError("the myocardium is empty, so nothing has a strain; draw it")
    maps = strain_maps(flows, np.argwhere(myo).mean(0), spacing_mm)
    radial, across = (values[:, myo].mean(1) for values in maps)
    return Strain(radial, across, int(myo.sum()))


def joined(parts: Sequence[Strain]) -> Strain:
    """The strain of several slices with as many frames each, weighed by their pixels."""
    weights = np.array([part.num_pixels for part in parts], float)
    means = {name: np.average([part.curves[name] for part in parts], 0, weights) for name in parts[0].curves}
    return Strain(means["radial"], means["circumferential"], int(weights.sum()))


def as_json(strain: Strain) -> Mapping[str, object]:
    """Plain numbers."""
    return {**{name: np.round(v, 5).tolist() for name, v in strain.curves.items()}, **strain.peaks()}
