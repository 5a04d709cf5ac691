"""The motion pyramid: a displacement that moves one frame onto another, from coarse to fine.

Axes: N pairs, F channels, H W the two in-plane axes of a slice, h w those of a level; D the two components of a
displacement, of which component i moves along array axis i, in pixels.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_cardiac.fields import compose, integrate, smooth, warp
from medseg_cardiac.models.sizes import check_pair, padded
from medseg_core.errors import MedsegError

STRIDE = 16
ALMOST_STILL = 1e-3  # standard deviation of the last layer's weights: training starts from hardly any motion


class Motion(nn.Module):
    """Where each pixel of `fixed` is found in `moving`: (N, 1, H, W) twice -> (N, 2, H, W).

    `warp(moving, flow)` looks like `fixed`; a point x of `fixed` has gone to x + flow(x) in `moving`. With the frame
    of end-diastole fixed this is the displacement of the muscle since then. 1,137,638 parameters. Pictures of any size
    are padded to multiples of 16 by their edges. The names of the tensors are the original's.

    Args:
        passes: how often it is asked: from the second time on it sees `moving` as it was moved so far, and what it adds
            is composed. Large motion needs two or three.
        diffeomorphic: takes what the network answers, smoothed by one pixel, for a velocity and integrates it, so that
            nothing folds (`fields.num_folds` tells).

    Raises:
        MedsegError: no pass; later, pictures that are no pair.
    """

    renames: ClassVar = {"motion_compensation": None}  # its sampling grid of 256 x 256

    def __init__(self, *, passes: int = 1, diffeomorphic: bool = False) -> None:
        super().__init__()
        if passes < 1:
            raise MedsegError(f"passes {passes} must be at least 1")
        self.passes, self.diffeomorphic = passes, diffeomorphic
        self.encoder, self.decoder = Encoder(), Decoder()
        self.apply(_initialise)

    def forward(self, moving_N1HW: Tensor, fixed_N1HW: Tensor, *, deep: bool = False) -> Tensor | list[Tensor]:
        """The displacement, float32; with `deep` what each level says in one pass, the finest first."""
        check_pair(moving_N1HW, fixed_N1HW)
        if deep:
            first, *coarse = self._levels(moving_N1HW, fixed_N1HW)
            return [self._displacement(first), *coarse]
        flow_NDHW = self._displacement(self._levels(moving_N1HW, fixed_N1HW)[0])
        for _ in range(self.passes - 1):
            moved_N1HW = warp(moving_N1HW, flow_NDHW)
            more_NDHW = self._displacement(self._levels(moved_N1HW, fixed_N1HW)[0])
            flow_NDHW = compose(more_NDHW, flow_NDHW)
        return flow_NDHW

    def _displacement(self, answer_NDHW: Tensor) -> Tensor:
        return integrate(smooth(answer_NDHW)) if self.diffeomorphic else answer_NDHW

    def _levels(self, moving_N1HW: Tensor, fixed_N1HW: Tensor) -> list[Tensor]:
        """What all levels say, (N, 2, H, W) float32 and coarser ones as they are padded."""
        x_N2HW, crop = padded(torch.cat([moving_N1HW.to(fixed_N1HW.dtype), fixed_N1HW], 1), STRIDE)
        first, *coarse = self.decoder(self.encoder(x_N2HW))
        return [first[..., *crop].float(), *(flow_NDhw.float() for flow_NDhw in coarse)]


class Encoder(nn.Module):
    """(N, 2, H, W) -> features at 1/2, 1/4, 1/8 and 1/16 of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _halved(2, 32, edge=7)
        self.conv2 = _halved(32, 64, edge=5)
        self.conv3 = _halved(64, 128, edge=3)
        self.conv4 = _halved(128, 256, edge=3)

    def forward(self, x_N2HW: Tensor) -> list[Tensor]:
        """The finest first."""
        x_NFhw, levels = x_N2HW, []
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x_NFhw = layer(x_NFhw)
            levels.append(x_NFhw)
        return levels


class Decoder(nn.Module):
    """Features of four levels -> displacements (N, 2, h, w) at 1, 1/2, 1/4, 1/8 and 1/16 of the size, all in pixels.

    Each level sees its skip only to correct the coarser displacement; what goes on to the next finer level are the
    upsampled features and that displacement.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flow_pred4 = nn.Conv2d(256, 2, 3, padding=1)
        self.upconv3 = _doubled(256, 128)
        self.flow_pred3 = nn.Conv2d(128 + 128 + 2, 2, 3, padding=1)
        self.upconv2 = _doubled(128 + 2, 64)
        self.flow_pred2 = nn.Conv2d(64 + 64 + 2, 2, 3, padding=1)
        self.upconv1 = _doubled(64 + 2, 32)
        self.flow_pred1 = nn.Conv2d(32 + 32 + 2, 2, 3, padding=1)
        self.final_upconv = _doubled(32 + 2, 16)
        self.final_flow = nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """The finest first."""
        half_NFhw, quarter_NFhw, eighth_NFhw, x_NFhw = levels
        flow_NDhw = self.flow_pred4(x_NFhw)
        answers = [flow_NDhw]
        for up, predict, skip_NFhw in (
            (self.upconv3, self.flow_pred3, eighth_NFhw),
            (self.upconv2, self.flow_pred2, quarter_NFhw),
            (self.upconv1, self.flow_pred1, half_NFhw),
        ):
            x_NFhw = up(x_NFhw)
            coarse_NDhw = F.interpolate(flow_NDhw, scale_factor=2, mode="bilinear", align_corners=True)
            flow_NDhw = predict(torch.cat([x_NFhw, skip_NFhw, coarse_NDhw], 1))
            x_NFhw = torch.cat([x_NFhw, flow_NDhw], 1)
            answers.append(flow_NDhw)
        return [self.final_flow(self.final_upconv(x_NFhw)), *reversed(answers)]


def _halved(before: int, after: int, *, edge: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, edge, stride=2, padding=edge // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def _doubled(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True))


def _initialise(module: nn.Module) -> None:
    """He et al. (2015): layers keep the mean square; an output of an upsampling has 4 x `in_channels` inputs."""
    if isinstance(module, nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=(2 / (4 * module.in_channels)) ** 0.5)
    elif isinstance(module, nn.Conv2d) and module.out_channels == 2:
        nn.init.normal_(module.weight, std=ALMOST_STILL)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.zeros_(module.bias)
