"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting
from medseg_core.settings import AugmentConfig, ScoreConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Data."""

    labels: str = setting("official", "Class list: official (v2: 117 names, v1: 104), folder, or a FILE.")
    structures: tuple[str, ...] = setting((), "Only these structures or groups: liver,spleen,vessels.")
    missing: Literal["empty", "ignore"] = setting("empty", "No file: the structure is empty, or was not annotated.")
    spacing_mm: tuple[float, float, float] | None = setting(
        None, "Spacing to work at, right-left, back-front, feet-head; none is the cohort's median.", low=0.01, high=100
    )
    workers: int = setting(1, "Processes that prepare cases.", low=1, exact=False)


@dataclass(frozen=True, kw_only=True)
class TotalsegConfig(PrepareConfig, AugmentConfig, TrainConfig):
    """CT network."""

    net: Literal["unet2d", "unet2d-attention", "unet3d"] = setting(
        "unet2d", "Architecture: slices, slices with attention gates, or patches in 3D."
    )
    epochs: int = setting(150, "Passes over the slices, or over the patches.", low=1, exact=False)
    batch_size: int | None = setting(
        None, "Samples per update, over all processes; none is 8 slices or 2 patches.", low=1
    )
    lr: float = setting(3e-3, "Learning rate at its highest.", low=0)
    size: int = setting(256, "Edge of a training slice in pixels; planes are cropped or padded to it.", low=16)
    patch: tuple[int, int, int] = setting(
        (96, 96, 96), "unet3d: edges of a training patch in voxels, right-left, back-front, feet-head.", low=1
    )
    patches_per_case: int = setting(4, "unet3d: patches of each case in an epoch, each time others.", low=1)
    widths: tuple[int, ...] | None = setting(
        None, "Channels of each level; none is the net's own, 32,64,128,256,512 (3D: 320); halve to save memory.", low=1
    )
    deep_supervision: bool = setting(False, "Also judge the coarser levels, each by a head of its own, while training.")
    channels_last: bool = setting(True, "Lay tensors out channels last; faster for these networks.")
    head: Literal["auto", "softmax", "sigmoid"] = setting(
        "auto", "Exclusive classes or one yes or no each; auto takes sigmoid where structures overlap."
    )
    loss: str = setting("auto", "auto is dice_balanced_ce for softmax, dice_bce for sigmoid; a wrong name lists all.")
    window_hu: tuple[float, float] = setting((-1000.0, 1000.0), "Intensities that become 0 and 1.")
    percentiles: tuple[float, float] | None = setting(
        None, "Instead of a window: percentiles of the volume that become 0 and 1.", low=0, high=100
    )
    foreground: float = setting(0.33, "Share of crops and patches that are centred on a structure.", low=0, high=1)
    brightness_chance: float | None = setting(
        0.0, "Chance to make all brighter; 0, as HU are calibrated.", low=0, high=1
    )
    contrast_chance: float | None = setting(0.0, "Chance to stretch contrast; 0, as HU are calibrated.", low=0, high=1)
    gamma_chance: float | None = setting(0.0, "Chance to bend the grey scale; 0, as HU are calibrated.", low=0, high=1)
    noise_std: float | None = setting(0.02, "Largest standard deviation of the noise; 0.02 is 40 HU.", low=0, high=1)
    blur_chance: float | None = setting(0.3, "Chance to blur, as resampling from another spacing does.", low=0, high=1)
    val: float = setting(0.2, "Share of patients held out for validation where no split is given.", low=0, high=0.9)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Prediction."""

    format: Literal["multilabel", "masks"] = setting("multilabel", "One file of label ids, or a file per structure.")
    structures: tuple[str, ...] = setting((), "Write only these structures or groups: liver,vessels.")
    uncertainty: bool = setting(False, "Also write an entropy map, 0 sure to 1 undecided.")
    batch_size: int | None = setting(
        None, "Samples per forward pass; none is 8 slices of 256 px, fewer larger ones, or 2 patches.", low=1
    )
    overlap: float = setting(0.5, "Overlap of patches, or of windows in a plane too large for one.", low=0, high=0.9)
    mirror: Literal["none", "left-right", "all"] = setting(
        "none",
        "Mean over mirror images, for nets trained with --flip-chance: left-right takes 2 times as long, all axes 4 "
        "(slices) or 8 (patches).",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "Arithmetic; auto is bf16 where it is fast.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:1.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoreConfig):
    """Evaluation."""

    labels: str = setting("official", "Class list: official (v2: 117 names, v1: 104), folder, or a FILE.")
    structures: tuple[str, ...] = setting((), "Only these structures or groups: liver,spleen,vessels.")
