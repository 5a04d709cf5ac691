"""The learning rate as a function of the position in the run, so that nothing of it needs saving."""

import math

from medseg_core.settings import TrainConfig


def lr_share(config: TrainConfig, progress: float, reductions: int = 0) -> float:
    """The share of the highest learning rate at `progress` (0 to 1), before `min_lr`.

    Args:
        reductions: how often validation has stopped gaining, for the plateau schedule.
    """
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 1.0
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * rest))
        case "poly":
            return (1 - rest) ** 0.9  # nnU-Net's exponent (Isensee et al., 2021)
        case "multistep":
            return 0.1 ** sum(progress >= m for m in config.milestones)
        case "plateau":
            return 0.5**reductions
        case _:
            return 1.0


def lr_at(config: TrainConfig, highest: float, progress: float, reductions: int = 0) -> float:
    """The learning rate of a group whose highest is `highest`; never below `min_lr` once warmed up."""
    lr = highest * lr_share(config, progress, reductions)
    return lr if progress < config.warmup else max(lr, min(config.min_lr, highest))
