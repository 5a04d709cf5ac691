"""Losses on logits, for exclusive classes (softmax) and for one yes or no each (sigmoid).

Every loss is a function of sums over voxels, so it is computed block by block, forward and backward: beside the
gradient itself a loss needs the memory of one block. Sums are kept in float32 or better, whatever the logits are.

A loss is the mean over cases of the loss of a case: splitting a batch over processes changes no gradient.

Legend: N cases, K classes, V voxels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg_core.blocks import BlockSums
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
    surprise, voxels = _softmax_sums(partial(_surprise, gamma=gamma), logits, label, ignore, known)
    return (surprise / voxels.clamp(min=1)).mean()


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
    dice = _over_present(_dice(both, probs, true, smooth), _foreground(true))
    return dice + (surprise.sum(1) / true.sum(1).clamp(min=1)).mean()


def dice_balanced_ce(
    logits: Tensor, label: Tensor, *, smooth: float = 1.0, ignore: int | None = None, known: Tensor | None = None
) -> Tensor:
    """`dice_loss`, half of `cross_entropy`, and half of a cross entropy to which each class of a case gives the same.

    A structure of fifty voxels among a hundred classes is otherwise unseen for hundreds of steps: Dice has no slope
    where its probability is 0, and among all voxels it hardly counts. Arguments are as for `dice_loss`.
    """
    surprise, both, probs, true = _softmax_sums(_overlap, logits, label, ignore, known)
    dice = _over_present(_dice(both, probs, true, smooth), _foreground(true))
    of_voxels = (surprise.sum(1) / true.sum(1).clamp(min=1)).mean()
    return dice + (of_voxels + _over_present(surprise / true.clamp(min=1), true > 0)) / 2


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
    (surprise,) = _sigmoid_sums(partial(_binary_surprise, gamma=gamma, alpha=alpha), logits, target, known)
    everywhere = torch.ones_like(surprise, dtype=torch.bool) if known is None else known
    return _over_present(surprise / logits[0, 0].numel(), everywhere)


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
    """`multilabel_dice` plus `bce`; arguments are theirs."""
    return multilabel_dice(logits, target, smooth=smooth, known=known) + bce(logits, target, known=known)


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


def _over_present(values: Tensor, present: Tensor) -> Tensor:
    """The mean over cases of the mean over present classes: (N, K), (N, K) bool -> scalar; 0 for a case of none."""
    return (values.masked_fill(~present, 0).sum(1) / present.sum(1).clamp(min=1)).mean()


def _log_probs(x_NKV: Tensor, y_NV: Tensor, known_NK: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p of each class (N, K, V) and of the true one (N, V), which on background is "anything not annotated"."""
    log_p_NKV = x_NKV.log_softmax(1)
    log_true_NV = log_p_NKV.gather(1, y_NV[:, None])[:, 0]
    if known_NK is None:
        return log_p_NKV, log_true_NV
    apart_NK = known_NK.clone()
    apart_NK[:, 0] = False
    log_rest_NV = log_p_NKV.masked_fill(apart_NK[:, :, None], -torch.inf).logsumexp(1)
    return log_p_NKV, torch.where(y_NV == 0, log_rest_NV, log_true_NV)


def _surprise(
    x_NKV: Tensor, y_NV: Tensor, skip_NV: Tensor | None, *, known: Tensor | None, gamma: float
) -> tuple[Tensor, ...]:
    """Sums of (1 - p)^gamma * -log p of the true class, and of voxels that count: (N,), (N,)."""
    _, log_true_NV = _log_probs(x_NKV, y_NV, known)
    surprise_NV, one_NV = -log_true_NV, torch.ones_like(x_NKV[:, 0], requires_grad=False)
    if gamma:
        surprise_NV = surprise_NV * (-torch.expm1(log_true_NV)).clamp(min=0) ** gamma
    if skip_NV is not None:
        surprise_NV, one_NV = (t.masked_fill(skip_NV, 0) for t in (surprise_NV, one_NV))
    return surprise_NV.sum(1), one_NV.sum(1)


def _overlap(x_NKV: Tensor, y_NV: Tensor, skip_NV: Tensor | None, *, known: Tensor | None) -> tuple[Tensor, ...]:
    """By class (N, K): sums over its label of -log p and of p; of p anywhere; and its label's voxels."""
    log_p_NKV, log_true_NV = _log_probs(x_NKV, y_NV, known)
    p_NKV, p_true_NV, one_NV = log_p_NKV.exp(), log_true_NV.exp(), torch.ones_like(x_NKV[:, 0], requires_grad=False)
    if skip_NV is not None:
        log_true_NV, p_true_NV, one_NV = (t.masked_fill(skip_NV, 0) for t in (log_true_NV, p_true_NV, one_NV))
        p_NKV = p_NKV.masked_fill(skip_NV[:, None], 0)
    zeros_NK = torch.zeros_like(x_NKV[:, :, 0], requires_grad=False)
    surprise_NK, both_NK, true_NK = (zeros_NK.scatter_add(1, y_NV, t) for t in (-log_true_NV, p_true_NV, one_NV))
    return surprise_NK, both_NK, p_NKV.sum(2), true_NK


def _binary_surprise(x_NKV: Tensor, t_NKV: Tensor, *, gamma: float, alpha: float | None) -> tuple[Tensor, ...]:
    t_NKV = t_NKV.to(x_NKV.dtype)
    surprise_NKV = F.binary_cross_entropy_with_logits(x_NKV, t_NKV, reduction="none")
    if gamma:
        wrong_NKV = t_NKV + (1 - 2 * t_NKV) * x_NKV.sigmoid()
        surprise_NKV = surprise_NKV * wrong_NKV**gamma
    if alpha is not None:
        surprise_NKV = surprise_NKV * (alpha * t_NKV + (1 - alpha) * (1 - t_NKV))
    return (surprise_NKV.sum(2),)


def _binary_overlap(x_NKV: Tensor, t_NKV: Tensor) -> tuple[Tensor, ...]:
    t_NKV, p_NKV = t_NKV.to(x_NKV.dtype), x_NKV.sigmoid()
    return (p_NKV * t_NKV).sum(2), p_NKV.sum(2), t_NKV.sum(2)


def _softmax_sums(
    measure: Callable[..., tuple[Tensor, ...]], logits: Tensor, label: Tensor, ignore: int | None, known: Tensor | None
) -> tuple[Tensor, ...]:
    _check(logits, (logits.shape[0], *logits.shape[2:]), label, known)
    if logits.shape[1] < 2:
        raise MedsegError("one channel is a yes or no: use a sigmoid loss, or give background a channel of its own")
    label = label.flatten(1).long()
    skip = None if ignore is None else label == ignore
    if skip is not None:
        label = label.masked_fill(skip, 0)
    if known is not None:
        label = label.masked_fill(~known.gather(1, label), 0)
    return BlockSums.apply(logits.flatten(2), partial(measure, known=known), label, skip)


def _sigmoid_sums(
    measure: Callable[..., tuple[Tensor, ...]], logits: Tensor, target: Tensor, known: Tensor | None
) -> tuple[Tensor, ...]:
    _check(logits, tuple(logits.shape), target, known)
    return BlockSums.apply(logits.flatten(2), measure, target.flatten(2))


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
