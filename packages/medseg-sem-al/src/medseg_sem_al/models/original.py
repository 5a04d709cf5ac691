"""The original's U-Net of six levels, for its weights and comparison. Axes: N images, C channels, K classes, H W."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError
from medseg_sem_al.models.segmenter import padded
from medseg_sem_al.models.unet import UNetEncoder, double_conv

WIDTHS = (64, 128, 256, 512, 1024, 2048)


class SixLevels(nn.Module):
    """(N, C, H, W) -> (N, K, H, W) logits, for any H and W.

    201,891,907 parameters for 3 channels and 3 classes: 75,478,464 in the encoder, 126,413,443 in the decoder, whose
    channels are twice those of the skips. One transposed convolution more makes logits of twice the size of the input,
    which are brought back to it.

    Args:
        in_channels: C.
        num_classes: K.
        width: channels of the finest level.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 3, *, width: int = 64) -> None:
        super().__init__()
        if min(in_channels, num_classes, width) < 1:
            raise MedsegError(f"channels {in_channels}, classes {num_classes} and width {width} must be at least 1")
        widths = [width * factor // WIDTHS[0] for factor in WIDTHS]
        self.encoder = UNetEncoder(in_channels, widths)
        self.ups, self.convs = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for skip in reversed(widths[:-1]):
            self.ups.append(nn.ConvTranspose2d(below, below // 2, 2, stride=2))
            self.convs.append(double_conv(below // 2 + skip, 2 * skip))
            below = 2 * skip
        self.last = nn.ConvTranspose2d(below, width, 2, stride=2)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW, crop = padded(x_NCHW, self.encoder.multiple)
        *skips, x_NChw = self.encoder(x_NCHW)
        for up, conv, skip_NChw in zip(self.ups, self.convs, reversed(skips), strict=True):
            x_NChw = conv(torch.cat([up(x_NChw), skip_NChw], 1))
        logits = self.head(self.last(x_NChw))
        return F.interpolate(logits, x_NCHW.shape[2:], mode="bilinear", align_corners=False)[..., *crop]
