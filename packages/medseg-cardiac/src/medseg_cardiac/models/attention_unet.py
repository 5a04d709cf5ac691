"""The Attention U-Net (Oktay et al., 2018): what a skip hands on is weighed by what the coarser level has seen.

Axes: N slices, C channels, K classes, H W the two in-plane axes; F channels of a level of size h w.
"""

import torch
from torch import Tensor, nn

from medseg_cardiac.models.sizes import padded
from medseg_core.errors import MedsegError

STRIDE = 16


class AttentionUNet(nn.Module):
    """Logits for each pixel of a slice: (N, C, H, W) -> (N, K, H, W).

    34,879,149 parameters for 4 -> 1 at width 64. Pictures of any size are padded to multiples of 16 by their edges.
    The names of the tensors are the original's.

    Args:
        in_channels: C.
        num_classes: K, the output channels.
        width: channels of the finest level; each coarser one, of five, has twice as many.

    Raises:
        MedsegError: a number below 1, an odd width; later, another number of channels.
    """

    def __init__(self, in_channels: int = 4, num_classes: int = 1, *, width: int = 64) -> None:
        super().__init__()
        if min(in_channels, num_classes) < 1 or width < 2 or width % 2:
            got = f"in_channels {in_channels}, num_classes {num_classes}, width {width}"
            raise MedsegError(f"{got}: channels must be at least 1, and the width an even number of at least 2")
        self.in_channels = in_channels
        w1, w2, w3, w4, w5 = (width * 2**level for level in range(5))
        self.encoder1, self.encoder2 = DoubleConv(in_channels, w1), DoubleConv(w1, w2)
        self.encoder3, self.encoder4 = DoubleConv(w2, w3), DoubleConv(w3, w4)
        self.bottleneck = DoubleConv(w4, w5)
        self.upconv4, self.att4, self.decoder4 = UpConv(w5, w4), Gate(w4), DoubleConv(2 * w4, w4)
        self.upconv3, self.att3, self.decoder3 = UpConv(w4, w3), Gate(w3), DoubleConv(2 * w3, w3)
        self.upconv2, self.att2, self.decoder2 = UpConv(w3, w2), Gate(w2), DoubleConv(2 * w2, w2)
        self.upconv1, self.att1, self.decoder1 = UpConv(w2, w1), Gate(w1), DoubleConv(2 * w1, w1)
        self.output = nn.Conv2d(w1, num_classes, 1)
        self.halve = nn.MaxPool2d(2)
        self.apply(_initialise)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """See the class.

        Raises:
            MedsegError: another number of channels or of axes.
        """
        if x_NCHW.ndim != 4 or x_NCHW.shape[1] != self.in_channels:
            raise MedsegError(f"AttentionUNet takes slices (N, {self.in_channels}, H, W), got {tuple(x_NCHW.shape)}")
        x_NFhw, crop = padded(x_NCHW, STRIDE)
        skips = []
        for encoder in (self.encoder1, self.encoder2, self.encoder3, self.encoder4):
            skips.append(encoder(x_NFhw))
            x_NFhw = self.halve(skips[-1])
        x_NFhw = self.bottleneck(x_NFhw)
        for up, gate, decoder in (
            (self.upconv4, self.att4, self.decoder4),
            (self.upconv3, self.att3, self.decoder3),
            (self.upconv2, self.att2, self.decoder2),
            (self.upconv1, self.att1, self.decoder1),
        ):
            x_NFhw = up(x_NFhw)
            x_NFhw = decoder(torch.cat([gate(x_NFhw, skips.pop()), x_NFhw], 1))
        return self.output(x_NFhw)[..., *crop]


class DoubleConv(nn.Module):
    """Twice convolution, normalisation, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)),
            *(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)),
        )

    def forward(self, x_NFhw: Tensor) -> Tensor:
        """(N, F, h, w) -> (N, after, h, w)."""
        return self.conv(x_NFhw)


class UpConv(nn.Module):
    """Twice the size, then convolution, normalisation, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up = nn.Sequential(
            enlarge, nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
        )

    def forward(self, x_NFhw: Tensor) -> Tensor:
        """(N, F, h, w) -> (N, after, 2h, 2w)."""
        return self.up(x_NFhw)


class Gate(nn.Module):
    """The skip, each pixel weighed by one number in (0, 1); additive attention of both inputs in half the channels.

    Args:
        width: channels of the skip and of what comes from below.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2))
        self.W_x = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.BatchNorm2d(width // 2))
        self.psi = nn.Sequential(nn.Conv2d(width // 2, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, below_NFhw: Tensor, skip_NFhw: Tensor) -> Tensor:
        """(N, F, h, w) twice -> (N, F, h, w)."""
        return skip_NFhw * self.psi(torch.relu(self.W_g(below_NFhw) + self.W_x(skip_NFhw)))


def _initialise(module: nn.Module) -> None:
    """He et al. (2015): a layer keeps the mean square."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module.out_channels == 1 else "relu")
        nn.init.zeros_(module.bias)
