"""The U-Net (Ronneberger et al., 2015) in two halves. Axes: N images, C channels, K classes, H W, h w of a level."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def double_conv(before: int, after: int) -> nn.Sequential:
    """Twice a 3x3 convolution without bias, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNetEncoder(nn.Module):
    """(N, C, H, W) -> (N, width, h, w) per level, finest first; each level has half the size of the one before.

    Args:
        in_channels: C.
        widths: channels of each level.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths, self.strides = tuple(widths), tuple(2**level for level in range(len(widths)))
        self.multiple = self.strides[-1]
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in pairwise((in_channels, *widths)))
        self.halve = nn.MaxPool2d(2)

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """H and W are multiples of the last stride."""
        found = []
        for level, conv in enumerate(self.levels):
            x_NCHW = conv(self.halve(x_NCHW) if level else x_NCHW)
            found.append(x_NCHW)
        return found


class UNetDecoder(nn.Module):
    """Levels of an encoder, finest first -> (N, K, h, w) logits of the finest.

    Per level a 2x2 transposed convolution that halves the channels, the skip beside it, a double convolution.

    Args:
        widths: channels of the encoder's levels.
        num_classes: K.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.ups, self.convs = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for width in reversed(widths[:-1]):
            self.ups.append(nn.ConvTranspose2d(below, below // 2, 2, stride=2))
            self.convs.append(double_conv(below // 2 + width, width))
            below = width
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *skips, x_NChw = levels
        for up, conv, skip_NChw in zip(self.ups, self.convs, reversed(skips), strict=True):
            x_NChw = conv(torch.cat([skip_NChw, up(x_NChw)], 1))
        return self.head(x_NChw)
