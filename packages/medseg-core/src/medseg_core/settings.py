"""The settings every training command shares. Standard library only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training."""

    epochs: int = setting(100, "Passes over the training samples.", low=1, exact=False)
    batch_size: int = setting(8, "Samples per update, over all processes.", low=1)
    accumulate: int = setting(1, "Batches whose gradients are added before an update.", low=1)
    lr: float = setting(1e-3, "Learning rate at its highest.", low=0)
    weight_decay: float = setting(0.0, "Pull of the weights towards zero.", low=0)
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adam", "Rule of the update; sgd has Nesterov momentum 0.99.")
    schedule: Literal["constant", "cosine", "poly", "plateau", "multistep"] = setting(
        "cosine", "How the learning rate falls; plateau halves it when validation stops gaining."
    )
    warmup: float = setting(0.0, "Share of the run in which the learning rate rises from 0.", low=0, high=1)
    min_lr: float = setting(0.0, "Learning rate that the schedule ends in.", low=0)
    milestones: tuple[float, ...] = setting(
        (0.6, 0.85), "multistep: shares of the run where lr falls tenfold.", low=0, high=1
    )
    clip: float = setting(0.0, "Largest norm of the gradient, 0 for no bound.", low=0)
    ema: float = setting(0.0, "Decay of averaged weights (0.999), 0 for none; validation uses them.", low=0, high=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Arithmetic; auto is bf16 where the device is fast at it."
    )
    channels_last: bool = setting(False, "Lay tensors out channels last.")
    compile: bool = setting(False, "Compile the model first; pays off in long runs.")
    patience: int = setting(0, "Stop after so many validations without gain, 0 for never.", low=0, exact=False)
    val_every: int = setting(1, "Epochs between validations.", low=1)
    save_every: int = setting(0, "Epochs between kept checkpoints, 0 for none.", low=0, exact=False)
    keep: int = setting(3, "How many of those checkpoints to keep.", low=1, exact=False)
    save_seconds: float = setting(300.0, "Longest time between two saves of the state.", low=0, exact=False)
    num_workers: int = setting(0, "Processes that prepare samples; changes no result.", low=0, exact=False)
    seed: int = setting(42, "Where all randomness starts.", low=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:1.", exact=False)
    deterministic: bool = setting(
        True, "On GPUs only kernels that repeat themselves, so that a run goes on to the same bits; off is faster."
    )
    sync_batchnorm: bool = setting(
        False, "Batch normalisation over all processes instead of within each; on GPUs only."
    )
    logger: Literal["none", "tensorboard", "wandb"] = setting("none", "A second place for the curves.", exact=False)
    wandb_project: str = setting(
        "medseg", "Project of the run in W&B; offline, unless WANDB_MODE=online says otherwise.", exact=False
    )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation: each chance and range left at none takes the value of the preset."""

    augment: Literal["none", "light", "strong"] = setting(
        "light",
        "Random changes of training samples; strong for few cases or other scanners, none to overfit on purpose.",
    )
    flip_chance: float | None = setting(
        None,
        "Chance to mirror; ids of left and right structures swap. Off where a package cannot tell them.",
        low=0,
        high=1,
    )
    flip_axes: tuple[int, ...] | None = setting(
        None, "Axes that may be mirrored, from 0; anatomy bears left-right alone, axis 0 in RAS.", low=0, high=2
    )
    turn_chance: float | None = setting(
        None, "Chance of one to three quarter turns; for pictures without an upside, not for patients.", low=0, high=1
    )
    rotate_chance: float | None = setting(None, "Chance to rotate.", low=0, high=1)
    rotate_degrees: float | None = setting(
        None, "Largest angle, in each plane; 15 is how patients lie, 180 is any angle.", low=0, high=180
    )
    scale_chance: float | None = setting(None, "Chance to enlarge or shrink.", low=0, high=1)
    scale_range: tuple[float, float] | None = setting(
        None, "Smallest and largest factor of size; 0.9,1.1 is how adults differ.", low=0.1, high=10
    )
    shift_chance: float | None = setting(None, "Chance to shift.", low=0, high=1)
    shift_share: float | None = setting(None, "Largest shift along each axis, as a share of its length.", low=0, high=1)
    elastic_chance: float | None = setting(None, "Chance to bend; the dearest transform in 3D.", low=0, high=1)
    elastic_cells: int | None = setting(
        None, "Cells of the bending grid along the longest edge; more bend finer, and less far.", low=1, high=64
    )
    elastic_strength: float | None = setting(
        None, "Largest move of a grid point, in cells; up to 0.4 nothing folds.", low=0, high=0.4
    )
    brightness_chance: float | None = setting(None, "Chance to make all brighter or darker.", low=0, high=1)
    brightness_shift: float | None = setting(
        None, "Largest value added or taken away; images span 0 to 1.", low=0, high=1
    )
    contrast_chance: float | None = setting(None, "Chance to stretch values about the image's mean.", low=0, high=1)
    contrast_range: tuple[float, float] | None = setting(
        None, "Smallest and largest factor of contrast; 1 leaves it.", low=0.01, high=10
    )
    gamma_chance: float | None = setting(None, "Chance to bend the grey scale.", low=0, high=1)
    gamma_range: tuple[float, float] | None = setting(
        None, "Smallest and largest exponent; below 1 lightens the dark parts.", low=0.01, high=10
    )
    noise_chance: float | None = setting(None, "Chance of Gaussian noise, as of a lower dose.", low=0, high=1)
    noise_std: float | None = setting(
        None, "Largest standard deviation of the noise; images span 0 to 1.", low=0, high=1
    )
    blur_chance: float | None = setting(None, "Chance to blur, as a softer kernel does.", low=0, high=1)
    blur_voxels: float | None = setting(None, "Largest standard deviation of the blur, in voxels.", low=0, high=10)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Scores."""

    measures: tuple[str, ...] = setting(
        ("overlap", "surface"),
        "Kinds of measures beside overlap: surface,centreline (clDice of tubes),lesions.",
    )
    tolerance: float = setting(3.0, "How far surfaces may lie apart to agree (NSD), in mm, nm or pixels.", low=0)
    percentile: float = setting(95.0, "Of the Hausdorff distance.", low=0, high=100)
    convention: Literal["voxel", "surface"] = setting(
        "voxel", "Where a surface lies: voxel as MONAI and MedPy, surface as surface-distance; numbers differ."
    )
    empty: Literal["undefined", "worst"] = setting(
        "undefined", "Distances of what is missed or invented: left out and counted, or the image's diagonal."
    )
    connectivity: int | None = setting(None, "Neighbours that join a lesion: 6, 18 or 26, in 2D 4 or 8; none is all.")
    min_iou: float = setting(0.0, "Least overlap that finds a lesion, 0 for any voxel.", low=0, high=1)
    missing: Literal["empty", "ignore"] = setting("empty", "No reference file: empty, or not annotated and not scored.")
    anonymous: bool = setting(False, "Number the cases instead of naming them.")
    workers: int = setting(0, "Processes that score cases, 0 for one a core.", low=0, exact=False)
