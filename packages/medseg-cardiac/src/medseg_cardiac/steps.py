"""The losses of the three networks, part by part; see `medseg_core.trainer.Step`.

Axes: N pairs, H W a square about the heart; D the two components of a displacement.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_cardiac.fields import compose, roughness, warp
from medseg_cardiac.losses import SIMILARITIES, mean_over, near_middle
from medseg_cardiac.settings import MotionConfig, RegistrationConfig
from medseg_core.draw import Batch
from medseg_core.losses import multilabel_dice, multilabel_focal
from medseg_core.trainer import At

REACH = 0.4  # of the edge: how far from the middle a pixel counts
BAND_PX = 1.5  # about an outline, where its distances are compared
ROUND_PX = 0.1  # from where on an error of motion counts by its length
AGAIN_FROM = 0.3  # share of the training after which pairs may be a later pass
AGAIN = 0.6  # share of the steps from then on in which they are
TWICE = 0.33  # share of these that have had two passes already
NOTHING = -30.0  # the logit of what cannot be
FOCAL_ALPHA = 0.25


class MotionStep:
    """Likeness of the moved frame, smoothness, the error of made motion at every level, and drawn outlines.

    A network of several passes is also shown frames that it has moved already.
    """

    def __init__(self, config: MotionConfig) -> None:
        self.config, self.unlike = config, SIMILARITIES[config.similarity]

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        moving, fixed, known = batch["moving"], batch["fixed"], batch["known"]
        middle = near_middle(fixed.shape[-1], reach=REACH * fixed.shape[-1], device=fixed.device)
        before = self._before(model, moving, fixed, at)
        seen = moving if before is None else warp(moving, before)
        flow, *coarse = model(seen, fixed, deep=True)
        wanted = batch["flow"] if before is None else rest_of(batch["flow"], before)
        whole = flow if before is None else compose(flow, before)
        true = known[:, None, None, None] * middle
        real = middle - true
        parts = {
            "photometric": mean_over(self.unlike(warp(batch["moving_plain"], whole), batch["fixed_plain"]), real),
            "smoothness": roughness(whole, power=2),
            "motion_px": length_of(flow - wanted, true),
            "coarse_px": sum(length_of(level - _shrunk(wanted, level), _shrunk(true, level)) for level in coarse) / 4,
            "outline_px": outline_error(whole, batch),
        }
        config = self.config
        loss = parts["photometric"] + config.smoothness * parts["smoothness"] + config.contours * parts["outline_px"]
        if config.synthetic:
            loss = loss + parts["motion_px"] + config.coarse * parts["coarse_px"]
        return {"loss": loss, **parts}

    def _before(self, model: nn.Module, moving: Tensor, fixed: Tensor, at: At) -> Tensor | None:
        """What an earlier pass has done, or None."""
        if self.config.passes == 1 or at.progress < AGAIN_FROM:
            return None
        if torch.rand((), generator=at.rng, device=at.rng.device) >= AGAIN:
            return None
        with torch.no_grad():
            before = model(moving, fixed, deep=True)[0]
            if torch.rand((), generator=at.rng, device=at.rng.device) < TWICE:
                before = compose(model(warp(moving, before), fixed, deep=True)[0], before)
        return before


class RegistrationStep:
    """Local correlation of the moved LGE with the cine, and smoothness."""

    def __init__(self, config: RegistrationConfig) -> None:
        self.config = config

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        flow = model(batch["moving"], batch["fixed"])
        middle = near_middle(flow.shape[-1], reach=REACH * flow.shape[-1], device=flow.device)
        unlike = mean_over(SIMILARITIES["ncc"](warp(batch["moving"], flow), batch["fixed"]), middle)
        smoothness = roughness(flow, power=2)
        return {"loss": unlike + self.config.smoothness * smoothness, "photometric": unlike, "smoothness": smoothness}


def infarct_step(model: nn.Module, batch: Batch, _: At) -> Mapping[str, Tensor]:
    """Half soft Dice and half focal loss (Lin et al., 2017) of infarct; beyond the myocardium it cannot be."""
    logits = model(batch["fixed"], batch["moving"], batch["flow"])
    logits = logits.masked_fill(batch["myo"] == 0, NOTHING)
    dice = multilabel_dice(logits, batch["infarct"])
    focal = multilabel_focal(logits, batch["infarct"], alpha=FOCAL_ALPHA)
    return {"loss": (dice + focal) / 2, "dice_loss": dice, "focal": focal}


def rest_of(flow_NDHW: Tensor, before_NDHW: Tensor) -> Tensor:
    """The displacement r with compose(r, before) = flow: r(x) = flow(x) - before(x + r(x)), by three rounds."""
    rest_NDHW = flow_NDHW - before_NDHW
    for _ in range(2):
        rest_NDHW = flow_NDHW - warp(before_NDHW, rest_NDHW)
    return rest_NDHW


def length_of(error_NDHW: Tensor, weight_N1HW: Tensor) -> Tensor:
    """The mean length in pixels over what has weight, 0 where nothing has; rounded near 0."""
    length = (error_NDHW.square().sum(1, keepdim=True) + ROUND_PX**2).sqrt() - ROUND_PX
    return (length * weight_N1HW).sum() / weight_N1HW.sum().clamp(min=1e-3)


def outline_error(flow_NDHW: Tensor, batch: Batch) -> Tensor:
    """How far the moved outline of the pool lies from the drawn one, in pixels, over drawn pairs; rounded below 1."""
    near = torch.exp(-(batch["near_fixed"] / BAND_PX).square()) * batch["drawn"][:, None, None, None]
    apart = F.smooth_l1_loss(warp(batch["near_moving"], flow_NDHW), batch["near_fixed"], reduction="none")
    return (apart * near).sum() / near.sum().clamp(min=1)


def _shrunk(values: Tensor, like: Tensor) -> Tensor:
    """Means over blocks, as many as `like` has pixels."""
    return F.adaptive_avg_pool2d(values, like.shape[-2:])
