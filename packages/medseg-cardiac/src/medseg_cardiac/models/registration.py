"""The registration net, a small VoxelMorph (Balakrishnan et al., 2019): one picture onto another of other contrast.

Axes: N pairs, F channels, H W the two in-plane axes of a slice, h w those of a level; D the two components of a
displacement, of which component i moves along array axis i, in pixels.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_cardiac.fields import integrate, smooth
from medseg_cardiac.models.sizes import check_pair, padded

STRIDE = 8
ALMOST_STILL = 1e-5  # standard deviation of the last layer's weights (Balakrishnan et al., 2019)


class Registration(nn.Module):
    """Where each pixel of `fixed` is found in `moving`: (N, 1, H, W) twice -> (N, 2, H, W).

    `warp(moving, flow)` lies on the grid of `fixed`. 1,956,674 parameters. Pictures of any size are padded to multiples
    of 8 by their edges. The names of the tensors are the original's.

    Args:
        diffeomorphic: takes what the network answers, smoothed by one pixel, for a velocity and integrates it.
    """

    renames: ClassVar = {"spatial_transformer": None}  # its sampling grid of 256 x 256

    def __init__(self, *, diffeomorphic: bool = False) -> None:
        super().__init__()
        self.diffeomorphic = diffeomorphic
        self.unet = UNet()

    def forward(self, moving_N1HW: Tensor, fixed_N1HW: Tensor) -> Tensor:
        """The displacement, float32.

        Raises:
            MedsegError: pictures that are no pair.
        """
        check_pair(moving_N1HW, fixed_N1HW)
        x_N2HW, crop = padded(torch.cat([moving_N1HW, fixed_N1HW], 1), STRIDE)
        flow_NDHW = self.unet(x_N2HW)[..., *crop].float()
        return integrate(smooth(flow_NDHW)) if self.diffeomorphic else flow_NDHW


class UNet(nn.Module):
    """(N, 2, H, W) -> (N, 2, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.enc3, self.enc4 = _block(2, 32), _block(32, 64), _block(64, 128), _block(128, 256)
        self.dec4, self.dec3, self.dec2 = _block(256 + 128, 128), _block(128 + 64, 64), _block(64 + 32, 32)
        self.dec1 = _block(32, 16)
        self.flow_layer = nn.Conv2d(16, 2, 3, padding=1)
        nn.init.normal_(self.flow_layer.weight, std=ALMOST_STILL)
        nn.init.zeros_(self.flow_layer.bias)

    def forward(self, x_N2HW: Tensor) -> Tensor:
        """See the class."""
        full_NFhw = self.enc1(x_N2HW)
        half_NFhw = self.enc2(F.max_pool2d(full_NFhw, 2))
        quarter_NFhw = self.enc3(F.max_pool2d(half_NFhw, 2))
        x_NFhw = self.enc4(F.max_pool2d(quarter_NFhw, 2))
        for block, skip_NFhw in ((self.dec4, quarter_NFhw), (self.dec3, half_NFhw), (self.dec2, full_NFhw)):
            x_NFhw = F.interpolate(x_NFhw, scale_factor=2, mode="bilinear", align_corners=True)
            x_NFhw = block(torch.cat([x_NFhw, skip_NFhw], 1))
        return self.flow_layer(self.dec1(x_NFhw))


def _block(before: int, after: int) -> nn.Sequential:
    """Twice convolution, normalisation, leaky ReLU."""
    return nn.Sequential(
        *(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True)),
        *(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True)),
    )
