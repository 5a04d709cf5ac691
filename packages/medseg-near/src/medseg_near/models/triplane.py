"""Three planes of features, from a latent: fine detail for the price of pictures, not of volumes (Chan et al., 2022).

Axes: N cases, C channels, H W a plane's axes, P points; planes stand across Z, Y and X.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_near.models.trunk import GROUPS, SLOPE

START = 4
WIDTHS = (128, 96, 64, 48, 32, 24)  # at 4, 8, 16, 32, 64 and 128 pixels
AXES = ((0, 1), (0, 2), (1, 2))
TRIPLANE_CHANNELS = 3 * WIDTHS[-1]
LAYOUT = torch.channels_last


class Triplane(nn.Module):
    """(N, L) latents -> (N, 3 * 24, 128, 128)."""

    def __init__(self, latent: int = 256) -> None:
        super().__init__()
        self.start = nn.Linear(latent, 3 * WIDTHS[0] * START**2)
        steps = pairwise(WIDTHS)
        self.doublings = nn.ModuleList(nn.Sequential(_layer(a, b), _layer(b, b)) for a, b in steps)
        self.to(memory_format=LAYOUT)

    def forward(self, latent_NL: Tensor) -> Tensor:
        """The three planes go through one network, as if they were three cases."""
        n = len(latent_NL)
        x_MCHW = self.start(latent_NL).reshape(3 * n, WIDTHS[0], START, START).contiguous(memory_format=LAYOUT)
        for block in self.doublings:
            x_MCHW = block(F.interpolate(x_MCHW, scale_factor=2, mode="bilinear", align_corners=False))
        return x_MCHW.reshape(n, -1, *x_MCHW.shape[2:])

    def at(self, planes_NCHW: Tensor, points_NP3: Tensor) -> Tensor:
        """(N, P, 3 * 24) features at points of [-1, 1]^3."""
        found = []
        for plane_NCHW, axes in zip(planes_NCHW.chunk(3, 1), AXES, strict=True):
            at_NP12 = points_NP3[..., list(axes)].flip(-1)[:, :, None]
            values_NCP1 = F.grid_sample(
                plane_NCHW.to(points_NP3.dtype), at_NP12, padding_mode="border", align_corners=True
            )
            found.append(values_NCP1[..., 0].transpose(1, 2))
        return torch.cat(found, -1)


def _layer(before: int, after: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, after), nn.LeakyReLU(SLOPE, inplace=True))
