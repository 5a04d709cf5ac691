"""Losses on logits, for exclusive classes (softmax) and for one yes or no each (sigmoid).

Every loss is a function of sums over voxels, so it is computed block by block, forward and backward: beside the
gradient itself a loss needs the memory of one block. Sums are kept in float32 or better, whatever the logits are.

A loss is the mean over cases of the loss of a case: splitting a batch over processes changes no gradient.

Legend: N cases, K classes, V voxels.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_core.blocks import BlockSums, Measure, Sigmoid, Softmax
from medseg_core.errors import MedsegError, meant

Loss = Callable[..., Tensor]


def cross_entropy(logits: Tensor, label: Tensor, *, ignore: int | None = None, known: Tensor | None = None) -> Tensor:
    """Minus the log-probability of the true class, averaged over the voxels of a case, then over cases.

    Args:
        logits: (N, K, ...) raw scores, K >= 2; channel 0 is background.
        label: (N, ...) integer ids in [0, K).
        ignore: an id whose voxels count nowhere; a case of nothing else has loss 0.
        known: (N, K) bool, the classes annotated in each case; background always is. The others become one class with
            background, so that no organ is punished where nobody drew it (marginal loss, Shi et al., 2021).

    Returns:
        A scalar of float32 or better.

    Raises:
        MedsegError: shapes that do not fit.
    """
    return focal_loss(logits, label, gamma=0.0, ignore=ignore, known=known)


def focal_loss(
    logits: Tensor, label: Tensor, *, gamma: float = 2.0, ignore: int | None = None, known: Tensor | None = None
) -> Tensor:
    """Cross entropy times (1 - p of the true class)^gamma: what is learnt already counts less (Lin et al., 2017).

    Args:
        logits, label, ignore, known: as for `cross_entropy`.
        gamma: 0 is cross entropy, 2 the paper's; 0 or at least 1.
    """
    surprise, _, true = _softmax_sums(_surprise(gamma), logits, label, ignore, known)
    return _over_voxels(surprise, true)


def dice_loss(
    logits: Tensor, label: Tensor, *, smooth: float = 1.0, ignore: int | None = None, known: Tensor | None = None
) -> Tensor:
    """One minus soft Dice, averaged over the foreground classes present in a case, then over cases (Milletari, 2016).

    On a CT slice a hundred of 117 classes are absent; counting them would make the loss about absence. A case without
    foreground has loss 0: cross entropy teaches absence.

    Args:
        logits, label, ignore, known: as for `cross_entropy`.
        smooth: added to both halves of the ratio, in voxels.

    Returns:
        A scalar in [0, 1].
    """
    _, both, probs, true = _softmax_sums(_overlap, logits, label, ignore, known)
    return _over_present(_dice(both, probs, true, smooth), _foreground(true))


def iou_loss(
    logits: Tensor, label: Tensor, *, smooth: float = 1.0, ignore: int | None = None, known: Tensor | None = None
) -> Tensor:
    """One minus soft intersection over union (Jaccard); averages and arguments as for `dice_loss`."""
    _, both, probs, true = _softmax_sums(_overlap, logits, label, ignore, known)
    return _over_present(_tversky(both, probs, true, 1.0, 1.0, smooth), _foreground(true))


def tversky_loss(
    logits: Tensor,
    label: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    ignore: int | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """One minus the Tversky index TP / (TP + alpha FP + beta FN), soft (Salehi et al., 2017).

    Args:
        logits, label, ignore, known: as for `cross_entropy`; averages as for `dice_loss`.
        alpha: weight of false positives, probability where the class is not.
        beta: weight of false negatives; above alpha it favours sensitivity. 0.5 and 0.5 are Dice, 1 and 1 IoU.
        smooth: added to both halves of the ratio, in voxels.
    """
    _, both, probs, true = _softmax_sums(_overlap, logits, label, ignore, known)
    return _over_present(_tversky(both, probs, true, alpha, beta, smooth), _foreground(true))


def dice_ce(
    logits: Tensor, label: Tensor, *, smooth: float = 1.0, ignore: int | None = None, known: Tensor | None = None
) -> Tensor:
    """`dice_loss` plus `cross_entropy`, with one softmax for both; arguments are theirs."""
    surprise, both, probs, true = _softmax_sums(_overlap, logits, label, ignore, known)
    return _over_present(_dice(both, probs, true, smooth), _foreground(true)) + _over_voxels(surprise, true)


def dice_balanced_ce(
    logits: Tensor, label: Tensor, *, smooth: float = 1.0, ignore: int | None = None, known: Tensor | None = None
) -> Tensor:
    """`dice_loss`, half of `cross_entropy`, and half of a cross entropy to which each class of a case gives the same.

    A structure of fifty voxels among a hundred classes is otherwise unseen for hundreds of steps: Dice has no slope
    where its probability is 0, and among all voxels it hardly counts. Arguments are as for `dice_loss`.
    """
    surprise, both, probs, true = _softmax_sums(_overlap_of_each, logits, label, ignore, known)
    dice = _over_present(_dice(both, probs, true, smooth), _foreground(true))
    return dice + (_over_voxels(surprise, true) + _over_present(surprise / true.clamp(min=1), true > 0)) / 2


def bce(logits: Tensor, target: Tensor, *, known: Tensor | None = None) -> Tensor:
    """Binary cross entropy, averaged over the voxels and channels of a case, then over cases.

    Args:
        logits: (N, K, ...) raw scores, each channel a yes or no of its own; there is no background channel.
        target: (N, K, ...) bool, uint8 or float in [0, 1], which may be soft.
        known: (N, K) bool, the channels annotated in each case; the others count nowhere.

    Returns:
        A scalar of float32 or better.

    Raises:
        MedsegError: shapes that do not fit.
    """
    return multilabel_focal(logits, target, gamma=0.0, known=known)


def multilabel_focal(
    logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = None, known: Tensor | None = None
) -> Tensor:
    """Binary cross entropy times (1 - p of the truth)^gamma (Lin et al., 2017).

    Args:
        logits, target, known: as for `bce`.
        gamma: 0 is binary cross entropy; 0 or at least 1.
        alpha: weight of foreground voxels, 1 - alpha that of background (the paper's 0.25); None weighs both by 1.
    """
    (surprise,) = _sigmoid_sums(_binary_surprise(gamma, alpha), logits, target, known)
    return _over_known(surprise / logits[0, 0].numel(), known)


def multilabel_dice(logits: Tensor, target: Tensor, *, smooth: float = 1.0, known: Tensor | None = None) -> Tensor:
    """One minus soft Dice, averaged over the channels present in a case, then over cases.

    Args:
        logits, target, known: as for `bce`.
        smooth: added to both halves of the ratio, in voxels.
    """
    both, probs, true = _sigmoid_sums(_binary_overlap, logits, target, known)
    return _over_present(_dice(both, probs, true, smooth), _present(true, known))


def multilabel_iou(logits: Tensor, target: Tensor, *, smooth: float = 1.0, known: Tensor | None = None) -> Tensor:
    """One minus soft intersection over union; averages and arguments as for `multilabel_dice`."""
    return multilabel_tversky(logits, target, alpha=1.0, beta=1.0, smooth=smooth, known=known)


def multilabel_tversky(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    known: Tensor | None = None,
) -> Tensor:
    """As `tversky_loss`: alpha weighs false positives, beta false negatives; the rest as for `multilabel_dice`."""
    both, probs, true = _sigmoid_sums(_binary_overlap, logits, target, known)
    return _over_present(_tversky(both, probs, true, alpha, beta, smooth), _present(true, known))


def dice_bce(logits: Tensor, target: Tensor, *, smooth: float = 1.0, known: Tensor | None = None) -> Tensor:
    """`multilabel_dice` plus `bce`, with one pass for both; arguments are theirs."""
    surprise, both, probs, true = _sigmoid_sums(_binary_overlap_and_surprise, logits, target, known)
    dice = _over_present(_dice(both, probs, true, smooth), _present(true, known))
    return dice + _over_known(surprise / logits[0, 0].numel(), known)


LOSSES: Mapping[Literal["softmax", "sigmoid"], Mapping[str, Loss]] = {
    "softmax": {
        "dice_ce": dice_ce,
        "ce": cross_entropy,
        "dice_balanced_ce": dice_balanced_ce,
        "dice": dice_loss,
        "iou": iou_loss,
        "tversky": tversky_loss,
        "focal": focal_loss,
    },
    "sigmoid": {
        "dice_bce": dice_bce,
        "bce": bce,
        "dice": multilabel_dice,
        "iou": multilabel_iou,
        "tversky": multilabel_tversky,
        "focal": multilabel_focal,
    },
}
"""By head and name, the first of each its default; all take (logits, target, *, known=None)."""


def combine(weights: Mapping[str, float], *, head: Literal["softmax", "sigmoid"] = "softmax") -> Loss:
    """A weighted sum of losses, e.g. `combine({"dice": 1.0, "focal": 0.5})`; keywords go to each of them.

    Raises:
        MedsegError: no loss, or one that the head does not have.
    """
    if not weights:
        raise MedsegError(f"combine needs at least one of the losses {', '.join(LOSSES[head])}")
    for name in weights:
        if name not in LOSSES[head]:
            near = meant(name, LOSSES[head]) or f"; there are {', '.join(LOSSES[head])}"
            raise MedsegError(f"no {head} loss {name!r}{near}")

    def combined(logits: Tensor, target: Tensor, **how: Any) -> Tensor:
        terms = [weight * LOSSES[head][name](logits, target, **how) for name, weight in weights.items()]
        return torch.stack(terms).sum()

    return combined


def _dice(both: Tensor, probs: Tensor, true: Tensor, smooth: float) -> Tensor:
    return 1 - (2 * both + smooth) / (probs + true + smooth)


def _tversky(both: Tensor, probs: Tensor, true: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    return 1 - (both + smooth) / (both + alpha * (probs - both) + beta * (true - both) + smooth)


def _foreground(true: Tensor) -> Tensor:
    present = true > 0
    present[:, 0] = False
    return present


def _present(true: Tensor, known: Tensor | None) -> Tensor:
    return true > 0 if known is None else (true > 0) & known


def _over_voxels(values: Tensor, true: Tensor) -> Tensor:
    """The mean over cases of the mean over voxels: sums by class (N, K), voxels by class (N, K) -> scalar."""
    return (values.sum(1) / true.sum(1).clamp(min=1)).mean()


def _over_present(values: Tensor, present: Tensor) -> Tensor:
    """The mean over cases of the mean over present classes: (N, K), (N, K) bool -> scalar; 0 for a case of none."""
    return (values.masked_fill(~present, 0).sum(1) / present.sum(1).clamp(min=1)).mean()


def _over_known(values: Tensor, known: Tensor | None) -> Tensor:
    """As `_over_present`, over all classes that were annotated."""
    return _over_present(values, torch.ones_like(values, dtype=torch.bool) if known is None else known)


def _surprise(gamma: float) -> Measure:
    """(1 - p)^gamma * -log p of the true class."""
    if not gamma:
        return Measure(lambda log_p: (-log_p,), lambda p: (-p.new_ones(()),), (False,))
    return Measure(
        lambda log_p: (-log_p * (-torch.expm1(log_p)).clamp(min=0) ** gamma,),
        lambda p: (gamma * torch.xlogy(p, p) * (1 - p) ** (gamma - 1) - (1 - p) ** gamma,),
        (False,),
    )


_overlap = Measure(lambda log_p: (-log_p, log_p.exp()), lambda p: (-p.new_ones(()), p), (False, True))
_overlap_of_each = replace(_overlap, by_class=(True, True))


def _binary_surprise(gamma: float, alpha: float | None) -> Measure:
    """(1 - p of the truth)^gamma times binary cross entropy, weighted by alpha."""

    def weighted(values_NKB: Tensor, t_NKB: Tensor) -> tuple[Tensor]:
        return (values_NKB if alpha is None else values_NKB * (alpha * t_NKB + (1 - alpha) * (1 - t_NKB)),)

    def values(x_NKB: Tensor, t_NKB: Tensor) -> tuple[Tensor]:
        surprise_NKB = F.binary_cross_entropy_with_logits(x_NKB, t_NKB, reduction="none")
        if gamma:
            surprise_NKB *= (t_NKB + (1 - 2 * t_NKB) * x_NKB.sigmoid()) ** gamma
        return weighted(surprise_NKB, t_NKB)

    def slopes(x_NKB: Tensor, t_NKB: Tensor) -> tuple[Tensor]:
        p_NKB = x_NKB.sigmoid()
        if not gamma:
            return weighted(p_NKB - t_NKB, t_NKB)
        surprise_NKB = F.binary_cross_entropy_with_logits(x_NKB, t_NKB, reduction="none")
        wrong_NKB, turn_NKB = t_NKB + (1 - 2 * t_NKB) * p_NKB, (1 - 2 * t_NKB) * p_NKB * (1 - p_NKB)
        fading_NKB = gamma * wrong_NKB ** (gamma - 1) * turn_NKB
        return weighted(wrong_NKB**gamma * (p_NKB - t_NKB) + fading_NKB * surprise_NKB, t_NKB)

    return Measure(values, slopes)


def _binary_overlap_values(x_NKB: Tensor, t_NKB: Tensor) -> tuple[Tensor, ...]:
    p_NKB = x_NKB.sigmoid()
    return p_NKB * t_NKB, p_NKB, t_NKB


def _binary_overlap_slopes(x_NKB: Tensor, t_NKB: Tensor) -> tuple[Tensor | None, ...]:
    p_NKB = x_NKB.sigmoid()
    slope_NKB = p_NKB * (1 - p_NKB)
    return slope_NKB * t_NKB, slope_NKB, None


def _joined(first: Measure, second: Measure) -> Measure:
    return Measure(
        lambda *at: (*first.values(*at), *second.values(*at)), lambda *at: (*first.slopes(*at), *second.slopes(*at))
    )


_binary_overlap = Measure(_binary_overlap_values, _binary_overlap_slopes)
_binary_overlap_and_surprise = _joined(_binary_surprise(0.0, None), _binary_overlap)


def _softmax_sums(
    measure: Measure, logits: Tensor, label: Tensor, ignore: int | None, known: Tensor | None
) -> tuple[Tensor, ...]:
    _check(logits, (logits.shape[0], *logits.shape[2:]), label, known)
    if logits.shape[1] < 2:
        raise MedsegError("one channel is a yes or no: use a sigmoid loss, or give background a channel of its own")
    return BlockSums.apply(logits.flatten(2), Softmax(measure, ignore), label.flatten(1), known)


def _sigmoid_sums(measure: Measure, logits: Tensor, target: Tensor, known: Tensor | None) -> tuple[Tensor, ...]:
    _check(logits, tuple(logits.shape), target, known)
    return BlockSums.apply(logits.flatten(2), Sigmoid(measure), target.flatten(2), known)


def _check(logits: Tensor, shape: tuple[int, ...], target: Tensor, known: Tensor | None) -> None:
    if logits.ndim < 3:
        raise MedsegError(
            f"logits have shape {tuple(logits.shape)}; make it (cases, channels, at least one axis of space)"
        )
    if tuple(target.shape) != shape:
        raise MedsegError(
            f"the target has shape {tuple(target.shape)}; for logits {tuple(logits.shape)} make it {shape}"
        )
    if known is not None and (tuple(known.shape) != tuple(logits.shape[:2]) or known.dtype != torch.bool):
        wanted = tuple(logits.shape[:2])
        raise MedsegError(
            f"known is {known.dtype} {tuple(known.shape)}; make it torch.bool {wanted}, cases by channels"
        )
