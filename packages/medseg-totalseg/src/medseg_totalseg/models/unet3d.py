"""The 3D U-Net (Cicek et al., 2016) as nnU-Net runs it: instance normalisation, leaky ReLU, strided convolutions.

Axes: N patches, C channels, K classes, X Y Z voxels; F and G the channels before and after a block, x y z the patch at
a level, smaller by that level's stride than at the one before.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg_core.errors import MedsegError

SLOPE = 0.01  # of the leaky ReLU below zero


class UNet3d(nn.Module):
    """Logits for each voxel of a patch: (N, C, X, Y, Z) -> (N, K, X, Y, Z).

    With the default widths 16,547,958 parameters for the 118 outputs of a softmax head over 117 structures.

    Args:
        in_channels: C.
        num_classes: K, the output channels; background is one of them under softmax.
        widths: channels at each level, from the input's size to the coarsest.
        strides: by how much a patch shrinks along X, Y and Z on the way to each level below the first; None halves
            every axis each time. Thick slices are left as they are until the others have become as coarse.
        deep_supervision: a head of its own for each level between the first and the last, for `deep=True`.

    Raises:
        MedsegError: widths or channels below 1, strides that do not fit them; later, a patch that cannot be divided.

    Source: Isensee et al., nnU-Net, Nature Methods 2021. There convolutions before a normalisation have a bias, which
    it takes away again.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 118,
        *,
        widths: Sequence[int] = (32, 64, 128, 256, 320),
        strides: Sequence[Sequence[int]] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if min(in_channels, num_classes, len(widths), *widths) < 1:
            got = f"in_channels {in_channels}, num_classes {num_classes}, widths {tuple(widths)}"
            raise MedsegError(f"{got}: channels must be at least 1, and widths name one level at least")
        steps = [tuple(stride) for stride in strides or [(2, 2, 2)] * (len(widths) - 1)]
        if len(steps) != len(widths) - 1 or any(len(step) != 3 or min(step) < 1 for step in steps):
            fix = f"give {len(widths) - 1} of three numbers from 1 on, like (2, 2, 1)"
            raise MedsegError(f"strides {steps} do not fit {len(widths)} widths; {fix}")
        self.in_channels = in_channels
        self.stride = tuple(math.prod(step[axis] for step in steps) for axis in range(3))
        ways = zip(itertools.pairwise((in_channels, *widths)), [(1, 1, 1), *steps], strict=True)
        self.encode = nn.ModuleList(_block(f, g, step) for (f, g), step in ways)
        coarse_to_fine = list(zip(itertools.pairwise(reversed(widths)), reversed(steps), strict=True))
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(f, g, step, stride=step) for (f, g), step in coarse_to_fine)
        self.decode = nn.ModuleList(_block(2 * g, g, (1, 1, 1)) for (_, g), _ in coarse_to_fine)
        self.head = nn.Conv3d(widths[0], num_classes, 1)
        deep = widths[-2:0:-1] if deep_supervision else ()
        self.deep_heads = nn.ModuleList(nn.Conv3d(g, num_classes, 1) for g in deep)
        self.apply(_initialise)
        for head in (self.head, *self.deep_heads):
            nn.init.kaiming_normal_(head.weight, nonlinearity="linear")

    def forward(self, x_NCXYZ: Tensor, *, deep: bool = False) -> Tensor | list[Tensor]:
        """Logits; with `deep` a list, those of every head, the finest first: (N, K, X, Y, Z), then each level's.

        Raises:
            MedsegError: another number of channels, an edge that the strides do not divide, or a patch of which a
                single voxel would be left: normalised by itself, it says nothing.
        """
        self._check(x_NCXYZ)
        skips = []
        x_NFxyz = x_NCXYZ
        for block in self.encode:
            x_NFxyz = block(x_NFxyz)
            skips.append(x_NFxyz)
        decoded = []
        for upsample, block, skip_NGxyz in zip(self.upsample, self.decode, skips[-2::-1], strict=True):
            x_NFxyz = block(torch.cat([skip_NGxyz, upsample(x_NFxyz)], 1))
            if deep:
                decoded.append(x_NFxyz)
        coarse = [head(y_NGxyz) for head, y_NGxyz in zip(self.deep_heads, decoded, strict=False)]
        return [self.head(x_NFxyz), *reversed(coarse)] if deep else self.head(x_NFxyz)

    def _check(self, x_NCXYZ: Tensor) -> None:
        if x_NCXYZ.ndim != 5 or x_NCXYZ.shape[1] != self.in_channels:
            raise MedsegError(f"UNet3d takes patches (N, {self.in_channels}, X, Y, Z), got {tuple(x_NCXYZ.shape)}")
        size = tuple(x_NCXYZ.shape[2:])
        below = [max(edge // s, 1) * s for edge, s in zip(size, self.stride, strict=True)]
        above = [-(-max(edge, 1) // s) * s for edge, s in zip(size, self.stride, strict=True)]
        tries = [try_ for try_ in (below, above) if math.prod(try_) > math.prod(self.stride)]
        if below == list(size) and tries:
            return
        tries = tries or [[2 * s for s in self.stride]]
        near = " or ".join(dict.fromkeys("x".join(map(str, try_)) for try_ in tries))
        what = f"a patch of {'x'.join(map(str, size))} must be a multiple of {'x'.join(map(str, self.stride))}"
        raise MedsegError(f"{what} and larger than that; try {near}")


def _block(f: int, g: int, step: tuple[int, ...]) -> nn.Sequential:
    """Twice convolution, normalisation, leaky ReLU: (N, F, x, y, z) -> (N, G, ...), smaller by `step`."""
    return nn.Sequential(
        nn.Conv3d(f, g, 3, stride=step, padding=1, bias=False),
        *(nn.InstanceNorm3d(g, affine=True), nn.LeakyReLU(SLOPE, inplace=True)),
        nn.Conv3d(g, g, 3, padding=1, bias=False),
        *(nn.InstanceNorm3d(g, affine=True), nn.LeakyReLU(SLOPE, inplace=True)),
    )


def _initialise(module: nn.Module) -> None:
    """He et al. (2015): a layer keeps the mean square. Here an output of an upsampling has `in_channels` inputs."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE, nonlinearity="leaky_relu")
    elif isinstance(module, nn.ConvTranspose3d):
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
