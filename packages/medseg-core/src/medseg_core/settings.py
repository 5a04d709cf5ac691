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
    logger: Literal["none", "tensorboard", "wandb"] = setting("none", "A second place for the curves.", exact=False)
