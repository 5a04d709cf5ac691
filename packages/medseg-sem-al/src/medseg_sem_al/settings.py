"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass
from typing import Literal

from medseg_core.config import setting
from medseg_core.settings import AugmentConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index."""

    images: str = setting("", "Images by a glob below ROOT, before all rules: 'scans/*.tif'.")
    masks: str = setting("", "Masks by a glob; their stars stand for what those of the images do: 'scans/*_gt.png'.")
    split: tuple[float, ...] = setting(
        (0.7, 0.2, 0.1), "Shares to train on, to validate on, to test on.", low=0, high=1
    )
    seed: int = setting(42, "Draws the split.", low=0)
    group: str = setting(
        "sequence",
        "What a split keeps whole: sequence is a name without its last number; block is a run of such numbers without "
        "a gap; image is each by itself; anything else is a regular expression whose match is the group.",
    )
    depth: int = setting(
        1,
        "Frames that a network sees at once: 3 is a picture between its neighbours of a sequence; the first and the "
        "last have themselves beside them.",
        low=1,
        high=15,
    )
    banner: int = setting(
        -1, "Rows to cut at the foot, where the instrument writes; -1 finds them.", low=-1, high=10000
    )
    pixel_nm: float = setting(0.0, "Edge of a pixel in nm, where no file says it; 0 is unknown.", low=0)


@dataclass(frozen=True, kw_only=True)
class LearnConfig(AugmentConfig, TrainConfig):
    """Learning."""

    size: int = setting(256, "Edge of a training window in pixels.", low=16, high=4096)
    epoch_windows: int = setting(
        0, "Windows of an epoch; 0 is as many as cover the pictures once, and 64 at least.", low=0
    )
    epochs: int = setting(60, "Passes over the windows.", low=1, exact=False)
    batch_size: int = setting(8, "Windows per update, over all processes.", low=1)
    lr: float = setting(1e-3, "Learning rate at its highest.", low=0)
    weight_decay: float = setting(1e-5, "Decay of the weights.", low=0)
    optimizer: Literal["adam", "adamw", "sgd"] = setting("adamw", "Rule of the update.")
    ema: float = setting(0.99, "Decay of averaged weights, 0 for none; validation uses them.", low=0, high=1)
    val_every: int = setting(2, "Epochs between validations.", low=1)
    flip_chance: float | None = setting(0.5, "Chance to mirror along each axis.", low=0, high=1)
    flip_axes: tuple[int, ...] | None = setting((0, 1), "Axes that may be mirrored: rows, columns.", low=0, high=1)
    turn_chance: float | None = setting(0.5, "Chance of one to three quarter turns.", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(LearnConfig):
    """Encoder."""

    encoder: str = setting(
        "unet",
        "unet, six_levels (the original's, 202 million parameters), resnet18|34|50, efficientnet_b0|b4|b5, vit_tiny, "
        "dinov2_small|base|large; weights are random.",
    )
    width: int = setting(16, "unet: channels at full size; each of four coarser levels has twice as many.", low=1)


@dataclass(frozen=True, kw_only=True)
class LabelConfig(LearnConfig):
    """Labels."""

    mode: Literal["full", "frozen", "differential"] = setting(
        "full", "frozen: the encoder stays as it is; differential: it learns at encoder-lr."
    )
    encoder_lr: float = setting(1e-5, "differential: learning rate of the encoder.", low=0)
    loss: Literal["dice_ce", "dice_balanced_ce", "ce", "dice", "focal"] = setting(
        "dice_ce", "dice_ce is Dice and cross entropy; in dice_balanced_ce a thin crack counts as much as the rest."
    )
    sampler: Literal["uniform", "per-dataset", "per-class"] = setting(
        "uniform", "What is drawn equally often: each picture, each data set, or each class, with windows around it."
    )
    datasets: tuple[str, ...] = setting((), "Data sets to learn from; none is all.")


@dataclass(frozen=True, kw_only=True)
class SegConfig(LabelConfig, EncoderConfig):
    """Segmentation."""

    decoder: Literal["unet", "deeplabv3plus"] = setting("unet", "What makes classes of the encoder's levels.")
    dropout: float = setting(
        0.0,
        "Share of the deepest level's channels that each update leaves out; for query --dropout-passes.",
        low=0,
        high=0.9,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SegConfig):
    """Fine-tuning."""

    mode: Literal["full", "frozen", "differential"] = setting(
        "differential", "frozen: the encoder stays as it is; differential: it learns at encoder-lr; full: all alike."
    )
    lr: float = setting(1e-4, "Learning rate at its highest.", low=0)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(EncoderConfig):
    """Self-supervision."""

    method: Literal["mae", "autoencoder", "dino"] = setting(
        "autoencoder",
        "autoencoder: any encoder fills hidden patches, without short cuts; mae: a vit sees a quarter of the patches, "
        "and tells the rest, in hundreds of epochs, with --warmup 0.1; dino: two views agree.",
    )
    patch: int = setting(16, "autoencoder: edge of a hidden patch in pixels.", low=2, high=256)
    hidden: float = setting(0.75, "mae, autoencoder: share of patches that are hidden.", low=0.05, high=0.95)
    ssim_weight: float = setting(0.5, "autoencoder: weight of 1 - SSIM beside the squared error.", low=0)
    num_prototypes: int = setting(64, "dino: outputs of the head.", low=2)
    num_small: int = setting(2, "dino: small views beside the two large ones.", low=0, high=8)
    held: float = setting(0.2, "Share of groups held out, on which reconstructions are judged.", low=0, high=0.9)


@dataclass(frozen=True, kw_only=True)
class PseudoConfig(LabelConfig):
    """Semi-supervision."""

    sure: float = setting(0.95, "Probability from which the teacher's pixels are taught.", low=0, high=1)
    pseudo_weight: float = setting(1.0, "Weight of unlabelled pixels at the end of the ramp.", low=0)
    ramp: float = setting(0.3, "Share of the run in which that weight rises from 0.", low=0, high=1)
    mix_chance: float = setting(0.5, "Chance that a box of another unlabelled window is pasted in.", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Prediction."""

    window: int = setting(512, "Edge of a tile in pixels; smaller pictures are seen at once.", low=32, high=8192)
    overlap: float = setting(0.25, "Least share that neighbouring tiles have in common.", low=0, high=0.9)
    mirror: bool = setting(False, "Average over mirror images; four times the work.")
    device: str = setting("auto", "auto, cpu, cuda or cuda:1.")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(TileConfig):
    """Pictures."""

    banner: int = setting(
        -1, "Rows at the foot where the instrument writes, which are not looked at; -1 finds them.", low=-1, high=10000
    )
    pixel_nm: float = setting(0.0, "Edge of a pixel in nm, where no file says it; 0 is unknown.", low=0)


@dataclass(frozen=True, kw_only=True)
class AskConfig(TileConfig):
    """Asking."""

    uncertainty: str = setting(
        "entropy=1,confidence=1,margin=1",
        "Measures and the weights of their ranks: entropy, confidence, margin; of several networks variance and bald; "
        "boundary-entropy and its like look at predicted boundaries alone.",
    )
    diversity: str = setting(
        "core-set=0.5,cluster=0.3",
        "Choosers and their shares of the picks: core-set, cluster, hybrid; the rest are the most uncertain.",
    )
    region: int = setting(0, "Edge in pixels of the parts that are asked for; 0 asks for whole pictures.", low=0)
    dropout_passes: int = setting(
        0, "Passes with dropout at work, as of so many networks; for a run with --dropout.", low=0, high=1000
    )
    seed: int = setting(42, "Where all randomness starts.", low=0)


@dataclass(frozen=True, kw_only=True)
class QueryConfig(AskConfig):
    """Choice."""

    num: int = setting(20, "How many to ask for.", low=1)
    strategy: str = setting(
        "combined",
        "combined is by --uncertainty and --diversity; random, class-random, clasp; a measure or a chooser alone.",
    )


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(SegConfig, AskConfig):
    """Simulation."""

    strategies: tuple[str, ...] = setting(
        ("combined", "clasp", "class-random", "random"), "Strategies, each from the same start."
    )
    seeds: int = setting(5, "How often all of it is done, each time from another start.", low=1)
    initial: int = setting(8, "Units that are labelled at the start, drawn at random.", low=1)
    num: int = setting(8, "Units that are asked for in a round.", low=1)
    rounds: int = setting(5, "How often is asked.", low=1)
    region: int = setting(128, "Edge in pixels of the parts that are asked for; 0 asks for whole pictures.", low=0)
    epochs: int = setting(6, "Passes over the windows of a round, each from the network of the one before.", low=1)
    epoch_windows: int = setting(128, "Windows of an epoch.", low=1)


@dataclass(frozen=True, kw_only=True)
class LoopConfig(SegConfig, QueryConfig):
    """Rounds."""

    initial: int = setting(50, "Pictures asked for at random where nothing is labelled yet.", low=1)
    rounds: int = setting(10, "Rounds of asking and training at most.", low=1, exact=False)
    epochs: int = setting(100, "Passes over the windows in a round, from the network of the one before.", low=1)
    min_improvement: float = setting(
        0.01, "Gain in mean IoU on the validation part that a round must bring.", low=0, exact=False
    )
    patience: int = setting(2, "Rounds in a row without that gain, after which it ends.", low=1, exact=False)
    pseudo: bool = setting(False, "After each training train on with the pool, as pseudo does.")
    accept_unedited: bool = setting(False, "Take a proposal that came back as it was for a label.", exact=False)
    poll: float = setting(2.0, "Seconds between two looks at the folder.", low=0.05, exact=False)
