"""The 2D U-Net (Ronneberger et al., 2015) with padding, batch normalisation and learned upsampling.

Axes: N slices, C channels, K classes, H W rows and columns; F and G the channels before and after a block,
h w the picture at a level, halved once for each level below the first.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from medseg_core.errors import MedsegError


class UNet2d(nn.Module):
    """Logits for each pixel of a slice: (N, C, H, W) -> (N, K, H, W).

    With the default widths 7,769,237 parameters for 1 -> 117 and 7,769,270 for the 118 outputs of a softmax head.

    Args:
        in_channels: C.
        num_classes: K, the output channels; background is one of them under softmax.
        widths: channels at each level, from the input's size to the coarsest; a slice is halved between levels.
        deep_supervision: a head of its own for each level between the first and the last, for `deep=True`.

    Raises:
        MedsegError: widths or channels below 1; later, a slice that cannot be halved often enough.
    """

    # of files with the layers inc, down1, ..., up1, ..., outc, as long as their convolutions have a bias
    renames: ClassVar[Mapping[str, str | None]] = {
        "inc.double_conv": "encode.0",
        "outc.conv": "head",
        **{f"down{n}.maxpool_conv.1.double_conv": f"encode.{n}" for n in range(1, 8)},
        **{f"up{n}.up": f"upsample.{n - 1}" for n in range(1, 8)},
        **{f"up{n}.conv.double_conv": f"decode.{n - 1}" for n in range(1, 8)},
    }

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 118,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, len(widths), *widths) < 1:
            got = f"in_channels {in_channels}, num_classes {num_classes}, widths {tuple(widths)}"
            raise MedsegError(f"{got}: channels must be at least 1, and widths name one level at least")
        self.in_channels, self.stride = in_channels, 2 ** (len(widths) - 1)
        self.encode = nn.ModuleList(_block(f, g) for f, g in itertools.pairwise((in_channels, *widths)))
        self.halve = nn.MaxPool2d(2)
        coarse_to_fine = list(itertools.pairwise(reversed(widths)))
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(f, g, 2, stride=2) for f, g in coarse_to_fine)
        self.decode = nn.ModuleList(_block(2 * g, g) for _, g in coarse_to_fine)
        self.head = nn.Conv2d(widths[0], num_classes, 1)
        deep = widths[-2:0:-1] if deep_supervision else ()
        self.deep_heads = nn.ModuleList(nn.Conv2d(g, num_classes, 1) for g in deep)
        self.apply(_initialise)
        for head in (self.head, *self.deep_heads):
            nn.init.kaiming_normal_(head.weight, nonlinearity="linear")

    def forward(self, x_NCHW: Tensor, *, deep: bool = False) -> Tensor | list[Tensor]:
        """Logits; with `deep` a list, those of every head, the finest first: (N, K, H, W), (N, K, H/2, W/2), ...

        Raises:
            MedsegError: another number of channels, or H or W no multiple of 2 ** (levels - 1).
        """
        self._check(x_NCHW)
        skips = []
        x_NFhw = x_NCHW
        for level, block in enumerate(self.encode):
            x_NFhw = block(self.halve(x_NFhw) if level else x_NFhw)
            skips.append(x_NFhw)
        decoded = []
        for upsample, block, skip_NGhw in zip(self.upsample, self.decode, skips[-2::-1], strict=True):
            x_NFhw = block(torch.cat([skip_NGhw, upsample(x_NFhw)], 1))
            if deep:
                decoded.append(x_NFhw)
        coarse = [head(y_NGhw) for head, y_NGhw in zip(self.deep_heads, decoded, strict=False)]
        return [self.head(x_NFhw), *reversed(coarse)] if deep else self.head(x_NFhw)

    def _check(self, x_NCHW: Tensor) -> None:
        if x_NCHW.ndim != 4 or x_NCHW.shape[1] != self.in_channels:
            raise MedsegError(f"UNet2d takes slices (N, {self.in_channels}, H, W), got {tuple(x_NCHW.shape)}")
        size = x_NCHW.shape[2:]
        below = [max(edge // self.stride, 1) * self.stride for edge in size]
        above = [-(-max(edge, 1) // self.stride) * self.stride for edge in size]
        if below != list(size):
            tries = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))
            raise MedsegError(f"a slice of {size[0]}x{size[1]} must be a multiple of {self.stride}; try {tries}")


def _block(f: int, g: int) -> nn.Sequential:
    """Twice convolution, normalisation, ReLU: (N, F, h, w) -> (N, G, h, w)."""
    return nn.Sequential(
        *(nn.Conv2d(f, g, 3, padding=1), nn.BatchNorm2d(g), nn.ReLU(inplace=True)),
        *(nn.Conv2d(g, g, 3, padding=1), nn.BatchNorm2d(g), nn.ReLU(inplace=True)),
    )


def _initialise(module: nn.Module) -> None:
    """He et al. (2015): a layer keeps the mean square. Here an output of an upsampling has `in_channels` inputs."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
    else:
        return
    nn.init.zeros_(module.bias)
