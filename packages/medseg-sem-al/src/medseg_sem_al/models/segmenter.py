"""An encoder and a decoder by their names. Axes: N images, C channels, K classes, H W, h w of a level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError, meant
from medseg_sem_al.models.encoders import Pyramid, ViTEncoder, encoder_of
from medseg_sem_al.models.unet import UNetDecoder

DECODERS = ("unet", "deeplabv3plus")


class Segmenter(nn.Module):
    """(N, C, H, W) -> (N, K, H, W) logits, for any H and W.

    The default is a U-Net of 16 to 256 channels with 1,942,323 parameters for 3 channels and 3 classes; `width=64` has
    31,037,763. All weights are random.

    Args:
        in_channels: C; 1 for grey.
        num_classes: K.
        encoder: of `encoders.ENCODERS`.
        decoder: "unet" or "deeplabv3plus".
        width: of the U-Net's finest level; each next has twice as many.
        dropout: share of the channels of the encoder's deepest level that are left out in training.

    Raises:
        MedsegError: an unknown name, or numbers out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 3,
        *,
        encoder: str = "unet",
        decoder: str = "unet",
        width: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, width) < 1:
            raise MedsegError(f"channels {in_channels}, classes {num_classes} and width {width} must be at least 1")
        if not 0 <= dropout < 1:
            raise MedsegError(f"dropout {dropout} must be a share below 1")
        if decoder not in DECODERS:
            known = ", ".join(DECODERS)
            raise MedsegError(f"there is no decoder {decoder!r}{meant(decoder, DECODERS)}; take one of {known}")
        self.encoder = encoder_of(encoder, in_channels, width)
        is_vit = isinstance(self.encoder, ViTEncoder)
        self.neck = Pyramid(self.encoder.widths[0]) if is_vit else nn.Identity()
        widths = self.neck.widths if is_vit else self.encoder.widths
        self.dropout = nn.Dropout2d(dropout)
        self.decoder = (UNetDecoder if decoder == "unet" else DeepLabDecoder)(widths, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW, crop = padded(x_NCHW, self.encoder.multiple)
        *finer, deepest = self.neck(self.encoder(x_NCHW))
        logits = self.decoder([*finer, self.dropout(deepest)])
        if logits.shape[2:] != x_NCHW.shape[2:]:
            logits = F.interpolate(logits, x_NCHW.shape[2:], mode="bilinear", align_corners=False)
        return logits[..., *crop]


class DeepLabDecoder(nn.Module):
    """DeepLabV3+ (Chen et al., 2018): levels of an encoder, finest first -> (N, K, h, w) logits of the second.

    Args:
        widths: channels of the encoder's levels, at least two.
        num_classes: K.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, *, channels: int = 256, low: int = 48) -> None:
        super().__init__()
        deep = widths[-1]
        self.branches = nn.ModuleList([_conv(deep, channels, 1), *(_conv(deep, channels, 3, r) for r in (6, 12, 18))])
        self.pooled = nn.Sequential(nn.Conv2d(deep, channels, 1), nn.ReLU(inplace=True))
        self.project = nn.Sequential(_conv(5 * channels, channels, 1), nn.Dropout(0.5))
        self.low = _conv(widths[1], low, 1)
        self.refine = nn.Sequential(_conv(channels + low, channels, 3), _conv(channels, channels, 3))
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        x_NChw, low_NChw = levels[-1], self.low(levels[1])
        whole = self.pooled(x_NChw.mean((2, 3), keepdim=True)).expand(-1, -1, *x_NChw.shape[2:])
        x_NChw = self.project(torch.cat([*(branch(x_NChw) for branch in self.branches), whole], 1))
        x_NChw = F.interpolate(x_NChw, low_NChw.shape[2:], mode="bilinear", align_corners=False)
        return self.head(self.refine(torch.cat([x_NChw, low_NChw], 1)))


def _conv(before: int, after: int, size: int, rate: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, padding=rate * (size // 2), dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def padded(x_NCHW: Tensor, stride: int) -> tuple[Tensor, tuple[slice, slice]]:
    """H and W made multiples of `stride`, and where the picture lies in the result.

    An axis is reflected where it is longer than what is to be added on a side; else its edge is repeated.

    Raises:
        MedsegError: not (N, C, H, W), or an empty picture.
    """
    if x_NCHW.ndim != 4 or 0 in x_NCHW.shape:
        raise MedsegError(f"the input is {tuple(x_NCHW.shape)}; it must be (N, C, H, W)")
    edges = x_NCHW.shape[2:]
    gaps = [-edge % stride for edge in edges]
    crop = tuple(slice(gap // 2, gap // 2 + edge) for gap, edge in zip(gaps, edges, strict=True))
    for axis, (gap, edge) in enumerate(zip(gaps, edges, strict=True)):
        ends = (gap // 2, gap - gap // 2)
        if gap:
            mode = "reflect" if ends[1] < edge else "replicate"
            x_NCHW = F.pad(x_NCHW, (0, 0, *ends) if axis == 0 else (*ends, 0, 0), mode=mode)
    return x_NCHW, (crop[0], crop[1])
