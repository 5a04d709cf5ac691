"""What pre-training minimises, and how good a picture is that a network made up.

Axes: N pictures, C channels, H W, h w of a grid of patches, K prototypes, B pictures of a batch, V views.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.draw import Batch
from medseg_core.trainer import At
from medseg_sem_al.models.pretraining import hidden_patches, normalised, pixels_of, to_patches

SIGMA, REACH = 1.5, 5  # of the window of SSIM, in pixels: 11 x 11 (Wang et al., 2004)
STUDENT = 0.1  # temperature
SHARPNESS = 3.0  # standard deviation of the teacher's logits, whatever they were
ROUNDS = 3  # of Sinkhorn and Knopp
BEST_PSNR = 100.0  # dB, where nothing is wrong


class MaskedPixels:
    """The squared error of hidden pixels, and 1 - SSIM around them.

    Args:
        hidden: share of patches.
        ssim_weight: of 1 - SSIM beside the squared error of standardised values.
        intensity: `{"mean", "std"}` of values in [0, 1]: SSIM is of these values, and their range is 1.
    """

    def __init__(self, hidden: float, ssim_weight: float, intensity: Mapping[str, float]) -> None:
        self.hidden, self.ssim_weight, self.intensity = hidden, ssim_weight, intensity

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        image_NCHW = batch["image"]
        hidden_Nhw = _hidden_of(image_NCHW, model.patch, self.hidden, at)
        told_NCHW = model(image_NCHW, hidden_Nhw).float()
        where_N1HW = pixels_of(hidden_Nhw, model.patch)
        mse = (told_NCHW - image_NCHW).square()[where_N1HW.expand_as(image_NCHW)].mean()
        made_NCHW = torch.where(where_N1HW, told_NCHW, image_NCHW)
        values = [x_NCHW * self.intensity["std"] + self.intensity["mean"] for x_NCHW in (made_NCHW, image_NCHW)]
        alike = ssim(*values, where=where_N1HW).mean()
        return {"loss": mse + self.ssim_weight * (1 - alike), "mse": mse, "ssim": alike}


class MaskedTokens:
    """The squared error of hidden patches, each with mean 0 and deviation 1, and of that mean and deviation.

    Args:
        hidden: share of patches.
    """

    def __init__(self, hidden: float) -> None:
        self.hidden = hidden

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        image_NCHW = batch["image"]
        hidden_Nhw = _hidden_of(image_NCHW, model.patch, self.hidden, at)
        values_NTP, moments_NT2 = model(image_NCHW, hidden_Nhw, parts=True)
        true_NTP, true_NT2 = normalised(to_patches(image_NCHW, model.patch))
        where_NT = hidden_Nhw.flatten(1)
        pixels = (values_NTP.float() - true_NTP)[where_NT].square().mean()
        moments = (moments_NT2.float() - true_NT2)[where_NT].square().mean()
        return {"loss": pixels + moments, "mse": pixels, "moments_mse": moments}


class Agreement:
    """The cross entropy of each view with what the teacher says of another, large view of the same place.

    The teacher's answers are spread evenly over prototypes by `sinkhorn` over the batch of this process, so that they
    cannot all be the same; no running centre has to be kept. Before, `distinct` makes their differences as large as
    ever, so that they cannot all say nothing either: at a fixed temperature a small batch soon ended there. Told beside
    the loss, as shares of the most that can be: `entropy`, of the mean answer, and `doubt`, the mean of the answers'
    entropies. Where `entropy` is hardly above `doubt`, all pictures get the same answer: nothing is learnt.
    """

    def __call__(self, model: nn.Module, batch: Batch, at: At) -> Mapping[str, Tensor]:
        """See `medseg_core.trainer.Step`."""
        assert at.teacher is not None
        views = [batch[name].transpose(0, 1).flatten(0, 1) for name in ("large", "small") if name in batch]
        with torch.no_grad():
            large_VBK = at.teacher(views[0]).float().unflatten(0, (2, -1))
            taught_VBK = torch.stack([sinkhorn(distinct(logits_BK)) for logits_BK in large_VBK])
        learnt_VBK = model(*views).float().unflatten(0, (-1, len(batch["large"])))
        told_VBK = (learnt_VBK / STUDENT).log_softmax(-1)
        pairs = [(v, t) for t in range(len(taught_VBK)) for v in range(len(told_VBK)) if v != t]
        loss = torch.stack([-(taught_VBK[t] * told_VBK[v]).sum(-1).mean() for v, t in pairs]).mean()
        return {"loss": loss, **spread(learnt_VBK[: len(taught_VBK)].detach().flatten(0, 1))}


def spread(logits_NK: Tensor) -> dict[str, Tensor]:
    """Entropy of the mean answer, and mean entropy of an answer, as shares of log K."""
    probs_NK, most = (logits_NK / STUDENT).softmax(-1), math.log(logits_NK.shape[-1])
    entropy, doubt = (torch.special.entr(p).sum(-1).mean() / most for p in (probs_NK.mean(0), probs_NK))
    return {"entropy": entropy, "doubt": doubt}


def distinct(logits_NK: Tensor) -> Tensor:
    """Logits without what all rows, or all columns, have in common; the rest with a standard deviation of 3."""
    rest_NK = logits_NK - logits_NK.mean(0)
    rest_NK = rest_NK - rest_NK.mean(1, keepdim=True)
    return SHARPNESS * rest_NK / rest_NK.std(correction=0).clamp(min=1e-6)


def sinkhorn(logits_NK: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Probabilities (N, K): each row sums to 1, and each column to nearly N / K (Cuturi, 2013; Caron et al., 2020)."""
    log_NK = logits_NK
    for _ in range(rounds):
        log_NK = log_NK - log_NK.logsumexp(0, keepdim=True)
        log_NK = log_NK - log_NK.logsumexp(1, keepdim=True)
    return log_NK.exp()


def ssim(one_NCHW: Tensor, other_NCHW: Tensor, *, data_range: float = 1.0, where: Tensor | None = None) -> Tensor:
    """Structural similarity of each picture (Wang et al., 2004): Gaussian windows of 11 x 11, deviation 1.5 pixels.

    Args:
        one_NCHW, other_NCHW: values of a range of `data_range`, edges of 11 at least. The formula knows their mean, so
            standardised values must be brought back to [0, 1] first.
        where: (N, 1, H, W) bool; windows around these pixels count, None is all that lie inside the picture.

    Returns:
        (N,), at least float32; 1 where no window counts. It can be derived.
    """
    kind = torch.promote_types(one_NCHW.dtype, torch.float32)
    with torch.autocast(one_NCHW.device.type, enabled=False):
        x, y = one_NCHW.to(kind), other_NCHW.to(kind)
        mean_x, mean_y, xx, yy, xy = _smooth(torch.stack([x, y, x * x, y * y, x * y]))
        var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        alike = alike / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        if where is None:
            return alike.mean((1, 2, 3))
        counts = where[..., REACH:-REACH, REACH:-REACH].expand_as(alike).to(kind)
        total = counts.sum((1, 2, 3))
        return torch.where(total > 0, (alike * counts).sum((1, 2, 3)) / total.clamp(min=1), 1.0)


def psnr(one_NCHW: Tensor, other_NCHW: Tensor, where_N1HW: Tensor) -> Tensor:
    """(N,) dB of the pixels that count, for values in [0, 1]; 100 where they are equal."""
    where = where_N1HW.expand_as(one_NCHW)
    error = (one_NCHW - other_NCHW).square().masked_fill(~where, 0).sum((1, 2, 3)) / where.sum((1, 2, 3))
    return -10 * error.clamp(min=10 ** (-BEST_PSNR / 10)).log10()


def _smooth(x: Tensor) -> Tensor:
    """Means over Gaussian windows that lie inside: H and W lose 10 pixels."""
    kernel = torch.exp(-(torch.arange(-REACH, REACH + 1, device=x.device) ** 2) / (2 * SIGMA**2)).to(x.dtype)
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    flat = F.conv2d(F.conv2d(x.reshape(-1, 1, *x.shape[-2:]), kernel), kernel.transpose(2, 3))
    return flat.reshape(*x.shape[:-2], *flat.shape[-2:])


def _hidden_of(image_NCHW: Tensor, patch: int, share: float, at: At) -> Tensor:
    grid = [edge // patch for edge in image_NCHW.shape[2:]]
    return hidden_patches(len(image_NCHW), grid, share, at.rng).to(image_NCHW.device)
