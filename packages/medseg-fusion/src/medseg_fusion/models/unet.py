"""The U-Net (Ronneberger et al., 2015) in two halves; every network here is built of them.

Axes: N slices, C channels, K classes, H W rows and columns, h w those of a level; level i has H / 2^i, W / 2^i.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from medseg_core.errors import MedsegError, meant

SLOPE = 0.2
Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {"layer": partial(nn.GroupNorm, 1, affine=False), "instance": nn.InstanceNorm2d}


def norm_of(name: str) -> Norm:
    """The normalisation of a slice, without parameters: over all channels together, or over each by itself.

    An instance norm forgets how much of a channel there is, so how hot a slice of PET is. A layer norm (Ba et al.,
    2016) keeps it as the share of the channels.

    Raises:
        MedsegError: neither "layer" nor "instance".
    """
    if name not in NORMS:
        raise MedsegError(f"norm is {name!r}{meant(name, NORMS)}; it must be 'layer' or 'instance'")
    return NORMS[name]


def conv_block(before: int, after: int, norm: Norm) -> nn.Sequential:
    """3x3 convolution, leaky ReLU, normalisation, in this order."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(SLOPE, inplace=True), norm(after))


class Encoder(nn.Module):
    """Two blocks per level and a max pool between levels: (N, C, H, W) -> one (N, width, h, w) per level, finest first.

    Args:
        in_channels: C.
        widths: channels of each level.
        norm: makes the normalisation of so many channels.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(conv_block(before, width, norm), conv_block(width, width, norm))
            for before, width in zip((in_channels, *widths), widths, strict=False)
        )
        self.halve = nn.MaxPool2d(2)

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """H and W are multiples of 2^(levels - 1)."""
        levels = [self.levels[0](x_NCHW)]
        for level in self.levels[1:]:
            levels.append(level(self.halve(levels[-1])))
        return levels


class Decoder(nn.Module):
    """From the coarsest level up to logits (N, K, H, W); each level takes its skip in.

    Per level: bilinear x2 (corners not aligned), 3x3 convolution, the skip beside it, two blocks. The very last block
    has no normalisation, and a 1x1 convolution follows it.

    Args:
        widths: channels of each level, finest first; the last is what comes in.
        skips: channels of the skip of each level but the coarsest, finest first.
        num_classes: K.
        norm: as for the encoder.
    """

    def __init__(self, widths: Sequence[int], skips: Sequence[int], num_classes: int, norm: Norm) -> None:
        super().__init__()
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.ups = nn.ModuleList(nn.Conv2d(below, width, 3, padding=1) for width, below in pairwise(widths))
        self.levels = nn.ModuleList(
            nn.Sequential(conv_block(width + skip, width, norm), conv_block(width, width, norm if level else _no_norm))
            for level, (width, skip) in enumerate(zip(widths, skips, strict=False))
        )
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x_NChw: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """The coarsest features, and the skips finest first."""
        for up, level, skip_NChw in zip(reversed(self.ups), reversed(self.levels), reversed(skips), strict=True):
            x_NChw = level(torch.cat([up(self.enlarge(x_NChw)), skip_NChw], 1))
        return self.head(x_NChw)


def _no_norm(_: int) -> nn.Module:
    return nn.Identity()
