"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting
from medseg_core.settings import AugmentConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Grids."""

    spacing_mm: tuple[float, float, float] | None = setting(
        None,
        "Spacing to work at, right-left, back-front, feet-head; none is the CT's own. PET holds no more than 2 mm.",
        low=0.1,
        high=50,
    )
    workers: int = setting(1, "Processes that prepare patients.", low=1, exact=False)


@dataclass(frozen=True, kw_only=True)
class LearnConfig(AugmentConfig, TrainConfig):
    """Learning."""

    width: int = setting(32, "Channels at full size; coarser levels have 2, 4 and 8 times as many.", low=1, high=512)
    attention: Literal["scaled", "unscaled"] = setting("scaled", "Energies of channel attention; unscaled saturates.")
    norm: Literal["layer", "instance"] = setting(
        "layer",
        "Normalisation of a slice, but in v1: layer over all channels, which keeps how hot PET is; instance over each "
        "by itself, as first described, which does not.",
    )
    vgg: str = setting("random", "Weights of the two VGG19: imagenet, random, or a FILE; nothing is downloaded.")
    loss: Literal["combined", "dice", "ce", "iou", "tversky", "focal"] = setting(
        "combined", "combined is dice-weight x Dice + ce-weight x cross entropy."
    )
    dice_weight: float = setting(0.5, "Weight of Dice in combined.", low=0)
    ce_weight: float = setting(0.5, "Weight of cross entropy in combined.", low=0)
    tversky_alpha: float = setting(0.3, "tversky: weight of false positives.", low=0, high=1)
    tversky_beta: float = setting(0.7, "tversky: weight of false negatives.", low=0, high=1)
    focal_alpha: float | None = setting(None, "focal: weight of tumour, 0 to 1; none weighs both by 1.", low=0, high=1)
    focal_gamma: float = setting(2.0, "focal: exponent.", low=0)
    epochs: int = setting(30, "Passes over the slices.", low=1, exact=False)
    batch_size: int = setting(8, "Slices per update, over all processes.", low=1)
    lr: float = setting(1e-4, "Learning rate at its highest.", low=0)
    min_lr: float = setting(1e-6, "Learning rate at the end.", low=0)
    weight_decay: float = setting(1e-4, "Decay of the weights.", low=0)
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adamw", "Rule of the update.")
    ema: float = setting(
        0.999, "Decay of averaged weights, 0 for none; validation and the result use them.", low=0, high=1
    )
    save_every: int = setting(5, "Epochs from one kept checkpoint to the next, 0 for none.", low=0)
    num_workers: int = setting(4, "Processes that prepare batches.", low=0, exact=False)
    val_ratio: float = setting(0.2, "Share of patients to validate on, where no split is given.", low=0, high=0.9)
    size: int = setting(0, "Edge of a training slice in pixels; 0 is that of the largest slice, at most 512.", low=0)
    tumour_share: float = setting(
        0.5, "Share of samples from slices with tumour; 0 takes every slice once, as it comes.", low=0, high=1
    )
    epoch_slices: int = setting(0, "Samples of an epoch; 0 is as many as there are slices.", low=0)
    window_hu: tuple[float, float] = setting((-160.0, 240.0), "HU that become 0 and 1.", low=-2000, high=4000)
    clip_suv: tuple[float, float] = setting(
        (0.0, 15.0), "SUV that become 0 and 1; beyond, they are cut.", low=0, high=200
    )
    drop_chance: float = setting(
        0.0,
        "Chance that a sample comes without CT, and as often without PET: one network for both or either.",
        low=0,
        high=0.5,
    )
    misalign_mm: float = setting(
        0.0, "Standard deviation of random moves of PET along each axis of a slice.", low=0, high=50
    )


@dataclass(frozen=True, kw_only=True)
class FusionConfig(LearnConfig):
    """Network."""

    net: Literal["four_way", "early", "single", "v1"] = setting(
        "four_way",
        "four_way: an encoder for each and two VGG19, fused at three scales; early: a U-Net on both channels; single: "
        "the same on one of them; v1: one encoder for both, three-way.",
    )
    modality: Literal["ct", "pet"] = setting("pet", "single: which one.")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(LearnConfig):
    """Comparison."""

    nets: tuple[str, ...] = setting(
        ("four_way", "v1", "early", "ct", "pet"), "What is compared; ct and pet are the U-Net of early on one of them."
    )
    folds: int = setting(5, "Parts of the patients, each of which is tested once.", low=2, high=100)
    seeds: tuple[int, ...] = setting((0, 1, 2), "Each net is trained so often on each fold.", low=0)
    save_every: int = setting(0, "Epochs from one kept checkpoint of a cell to the next, 0 for none.", low=0)
    misregistration: bool = setting(True, "Also ask with PET moved by 2 to 20 mm and turned by 2 to 10 degrees.")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Prediction."""

    threshold: float | None = setting(
        None, "Probability from which a voxel is tumour; none is what validation chose.", low=0.01, high=0.99
    )
    save_prob: bool = setting(False, "Also write the probabilities.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:1.")
