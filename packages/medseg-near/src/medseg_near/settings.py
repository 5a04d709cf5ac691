"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting
from medseg_core.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Crops."""

    margin_mm: float = setting(10.0, "Room on every side of the structure, in mm.", low=0, high=200)
    window_hu: tuple[float, float] = setting(
        (-200.0, 500.0), "CT values that become 0 and 1, where images are given.", low=-2000, high=4000
    )


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainConfig):
    """Fitting."""

    net: Literal["denoising", "pointwise", "triplane", "original", "upstream"] = setting(
        "denoising",
        "denoising: reads a label and undoes errors that it learnt to undo; pointwise: the auto-decoder, a latent for "
        "each case; triplane: the same with finer features; original, upstream: norms over all points, for old weights "
        "and for comparison.",
    )
    errors: tuple[str, ...] = setting(
        ("holes", "shifts", "leaks", "smooth", "breaks", "branches"),
        "denoising: what is done to labels on purpose, to learn how to undo it.",
    )
    width: int = setting(32, "denoising: channels at the finest level.", low=4, high=256)
    patch: int = setting(
        48, "denoising: points of the lattice along each edge of what an update sees of a case.", low=16, high=512
    )
    cell_mm: float = setting(
        0.0, "denoising: distance of the points where a label is read; 0 is the voxel edge that most have.", low=0
    )
    latent: int = setting(256, "Numbers that describe a shape.", low=1)
    appearance: bool = setting(False, "Also look at the CT at each point; the cache needs images.")
    resolution: int = setting(128, "Points along each edge of the cube where shapes are scored.", low=8, high=1024)
    points: int = setting(
        0,
        "Points of a case in an update; 0 is 16384 for denoising, else resolution^3 on a GPU and 32768 on a CPU.",
        low=0,
        high=10**8,
    )
    curriculum: tuple[float, ...] = setting(
        (0.5, 0.3, 0.1),
        "Share of the points that lie near the surface, over equal parts of the epochs, where a net has latents.",
        low=0,
        high=1,
    )
    band_radius: float = setting(2.0, "How near, in voxels of the label, inside and outside.", low=0.5, high=64)
    dice: float = setting(0.7, "Weight of soft Dice, of the nets with latents.", low=0)
    focal: float = setting(0.3, "Weight of the focal loss.", low=0)
    gamma: float = setting(4.0, "Exponent of the focal loss.", low=0)
    penalty: float = setting(1e-4, "Weight of the length of the latents.", low=0)
    num_scored: int = setting(8, "Cases that are scored on the whole cube at each validation; 0 for all.", low=0)
    epochs: int = setting(300, "Passes over the cases.", low=1, exact=False)
    batch_size: int = setting(1, "Cases per update, over all processes.", low=1)
    accumulate: int = setting(4, "Updates of which one is made.", low=1)
    lr: float = setting(5e-4, "Learning rate at its highest.", low=0)
    val_every: int = setting(10, "Epochs from one validation to the next.", low=1)


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Refinement."""

    resolution: int = setting(
        0,
        "Points along each edge of the cube where the shape is asked, then brought to the label's voxels; 0 asks at "
        "these voxels themselves.",
        low=0,
        high=2048,
    )
    fit_steps: int = setting(200, "Updates that find the latent of a case that the run does not know.", low=1)
    fit_points: int = setting(8192, "Points of each of them.", low=64, high=10**7)
    fit_lr: float = setting(2e-2, "Learning rate of these updates at its highest.", low=0)
    known: bool = setting(True, "Use the latent that the run has of a case; else fit every case anew.")
    threshold: float = setting(0.5, "Probability from which a point is inside.", low=0.01, high=0.99)
    put_back: bool = setting(
        False,
        "Blocks of slices moved in their plane, as when each was drawn by itself: put them back, where that is sure, "
        "before the model sees a label. The CT stays where it is.",
    )
    sharpen: bool = setting(
        False,
        "The labels were smoothed: give them back what that took, where a filter's width fits them. Takes seconds to "
        "minutes for large structures.",
    )
    reach_mm: float = setting(
        5.0, "Parts of the answer that nowhere come this near to the label, in mm, are left out.", low=0, high=1000
    )
    max_change: str = setting(
        "50%", "How much may change, as 20% of the volume, 5mm, 20%,5mm, or none; beyond it a case is left as it was."
    )
    save_prob: bool = setting(False, "Also write probabilities, for every voxel of the crop.")
    margin_mm: float = setting(10.0, "Room on every side of the structure, in mm.", low=0, high=200)
    window_hu: tuple[float, float] = setting(
        (-200.0, 500.0), "CT values that become 0 and 1, where images are given.", low=-2000, high=4000
    )
    seed: int = setting(42, "Where all randomness starts.", low=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:1.")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merging."""

    priority: tuple[str, ...] | None = setting(
        ("coronary", "LAA", "PV", "LA", "LV", "myocardium", "aorta", "RA", "RV", "PA"),
        "Which class has a voxel that several claim: the first of these; classes not named come after, by id.",
    )
    touch: tuple[str, ...] | None = setting(
        ("LAA:LA", "PV:LA"), "CLASS:OTHER/OTHER,...: components of a class that touch none of the others are removed."
    )
    near: tuple[str, ...] | None = setting(
        ("coronary:aorta/myocardium:3mm",),
        "CLASS:OTHER/OTHER:3mm,...: components of a class farther than that from all the others are removed.",
    )
    keep: tuple[str, ...] | None = setting(
        (
            *("aorta=2", "PA=1", "LAA=1", "coronary=2", "PV=2"),
            *("myocardium=1", "LA=1", "LV=1", "RA=1", "RV=1"),
        ),
        "CLASS=N,...: so many components of a class stay, the largest; a class not named keeps all.",
    )
    fill: tuple[str, ...] | None = setting(("myocardium",), "Classes whose holes are filled where no class is.")
    max_removed: float = setting(
        0.5,
        "Largest share of a class that a rule may remove; one that asks for more is not applied, and flagged.",
        low=0,
        high=1,
    )
    workers: int = setting(1, "Processes that merge cases.", low=1, exact=False)
