"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting
from medseg_core.settings import AugmentConfig, ScoreConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class CineConfig:
    """Files."""

    axes: Literal["auto", "THW", "HWT", "HWS", "SHW", "HWST", "HWTS", "THWS", "SHWT"] = setting(
        "auto", "Order of the axes of cine files; auto reads it off their headers: T H W, or H W S T."
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(CineConfig):
    """Data."""

    size: int = setting(256, "Edge in pixels of the square about the heart that the networks see.", low=16)
    pixel_mm: float | None = setting(
        None, "Edge of a pixel to work at, in mm; none is the cohort's median.", low=0.1, high=20
    )
    percentiles: tuple[float, float] = setting(
        (1.0, 99.0), "Percentiles of a whole sequence that become 0 and 1.", low=0, high=100
    )
    crop: int = setting(128, "Edge in pixels of the square that is trained on, drawn near the middle.", low=16)
    val: float = setting(0.2, "Share of patients held out for validation where no split is given.", low=0, high=0.9)


@dataclass(frozen=True, kw_only=True)
class FitConfig(DataConfig, AugmentConfig, TrainConfig):
    """Training of this package."""

    epochs: int = setting(100, "Passes over the slices.", low=1, exact=False)
    batch_size: int = setting(4, "Samples per update, over all processes.", low=1)
    lr: float = setting(1e-4, "Learning rate at its highest.", low=0)
    weight_decay: float = setting(1e-5, "Pull of the weights towards zero.", low=0)
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adamw", "Rule of the update.")
    min_lr: float = setting(1e-6, "Learning rate that the schedule ends in.", low=0)
    patience: int = setting(10, "Stop after so many validations without gain, 0 for never.", low=0, exact=False)
    shading: float = setting(0.2, "Largest shading by the coils, as the spread of its logarithm.", low=0, high=2)


@dataclass(frozen=True, kw_only=True)
class MotionConfig(FitConfig):
    """Motion."""

    batch_size: int = setting(8, "Samples per update, over all processes.", low=1)
    lr: float = setting(1.5e-3, "Learning rate at its highest.", low=0)
    warmup: float = setting(0.05, "Share of the run in which the learning rate rises from 0.", low=0, high=1)
    clip: float = setting(1.0, "Largest norm of the gradient, 0 for no bound.", low=0)
    channels_last: bool = setting(True, "Lay tensors out channels last; faster for these networks.")
    similarity: Literal["l1", "charbonnier", "ncc"] = setting(
        "ncc", "What makes two frames alike: l1 and charbonnier of grey values, ncc of their local pattern."
    )
    smoothness: float = setting(0.02, "Weight of the displacement's roughness.", low=0)
    frames: Literal["ed", "any"] = setting("any", "Which frame stays: ed always, or any of the cycle.")
    pairs_per_slice: int = setting(8, "Pairs of frames of each slice in an epoch, each time others.", low=1)
    synthetic: float = setting(
        0.3, "Share of samples whose motion is made, and so known: a frame, and the same frame squeezed.", low=0, high=1
    )
    coarse: float = setting(0.3, "Weight of the error of made motion at the coarser levels.", low=0)
    contours: float = setting(
        0.0,
        "Weight of drawn pools: how far the outline moved from ED to ES lies from the drawn one; 0 needs none.",
        low=0,
    )
    drawn: float = setting(0.5, "Share of samples that are ED and ES, where both pools are drawn.", low=0, high=1)
    passes: int = setting(2, "How often the network is asked; each time it sees what it has moved so far.", low=1)
    diffeomorphic: bool = setting(False, "Integrate a velocity, so that nothing folds.")
    rotate_chance: float | None = setting(1.0, "Chance to rotate.", low=0, high=1)
    rotate_degrees: float | None = setting(180.0, "Largest angle; motion looks alike from all sides.", low=0, high=180)
    flip_chance: float | None = setting(0.5, "Chance to mirror, along each axis.", low=0, high=1)
    flip_axes: tuple[int, ...] | None = setting((0, 1), "Axes that may be mirrored, from 0.", low=0, high=1)
    scale_chance: float | None = setting(1.0, "Chance to enlarge or shrink.", low=0, high=1)
    scale_range: tuple[float, float] | None = setting((0.8, 1.25), "Smallest and largest factor.", low=0.1, high=10)
    shift_chance: float | None = setting(1.0, "Chance to shift.", low=0, high=1)
    gamma_chance: float | None = setting(1.0, "Chance to bend the grey scale.", low=0, high=1)
    gamma_range: tuple[float, float] | None = setting((0.6, 1.65), "Smallest and largest exponent.", low=0.01, high=10)
    noise_chance: float | None = setting(1.0, "Chance of noise.", low=0, high=1)
    noise_std: float | None = setting(0.03, "Largest standard deviation of the noise.", low=0, high=1)
    blur_chance: float | None = setting(0.3, "Chance to blur.", low=0, high=1)
    shading: float = setting(0.5, "Largest shading by the coils, as the spread of its logarithm.", low=0, high=2)


@dataclass(frozen=True, kw_only=True)
class RegistrationConfig(FitConfig):
    """Registration of LGE to cine."""

    smoothness: float = setting(0.5, "Weight of the displacement's roughness.", low=0)
    diffeomorphic: bool = setting(False, "Integrate a velocity, so that nothing folds.")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(FitConfig):
    """Infarct."""

    width: int = setting(64, "Channels of the U-Net's finest level; 16 takes a sixteenth of the time.", low=2)
    sees: Literal["motion", "ed"] = setting(
        "motion", "What the U-Net is given beside the frame at ED: motion, or nothing, to know what motion is worth."
    )
    refine: int = setting(
        40, "Steps that make the displacement better before the U-Net sees it; 0 leaves it to the motion net.", low=0
    )
    patience: int = setting(15, "Stop after so many validations without gain, 0 for never.", low=0, exact=False)
    rotate_chance: float | None = setting(1.0, "Chance to rotate.", low=0, high=1)
    rotate_degrees: float | None = setting(180.0, "Largest angle; an infarct may be on any side.", low=0, high=180)
    flip_chance: float | None = setting(0.5, "Chance to mirror, along each axis.", low=0, high=1)
    flip_axes: tuple[int, ...] | None = setting((0, 1), "Axes that may be mirrored, from 0.", low=0, high=1)
    scale_chance: float | None = setting(0.5, "Chance to enlarge or shrink.", low=0, high=1)
    scale_range: tuple[float, float] | None = setting((0.85, 1.2), "Smallest and largest factor.", low=0.1, high=10)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CineConfig):
    """Prediction."""

    flow: bool = setting(False, "Also write displacements, ED to ES, as ITK fields in mm.")
    strain: bool = setting(False, "Also write strain over the cycle: a table and curves.")
    contours: bool = setting(False, "Also track the contours: a moving picture, and masks at ES.")
    refine: int = setting(
        40, "Steps that make the displacement of each frame better, for strain, fields and contours; 0 for none.", low=0
    )
    threshold: float = setting(0.5, "Probability from which a pixel is infarct.", low=0, high=1)
    ed: int | None = setting(None, "Frame of end-diastole, from 0; none is found.", low=0)
    es: int | None = setting(None, "Frame of end-systole, from 0; none is found.", low=0)
    septum_deg: float | None = setting(
        None,
        "Where the septum lies in the picture, in degrees: 0 right, 90 up, 180 left; none reads it off the affine.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "Arithmetic; auto is bf16 where it is fast.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:1.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CineConfig, ScoreConfig):
    """Evaluation."""

    refine: int = setting(40, "Steps that make the displacement of each frame better, as in predict.", low=0)
