"""What the four-way network is held against: early concatenation, one modality alone, and its predecessor.

Axes: N slices, K classes, H W rows and columns, h w those of a level; the two channels are CT and PET.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from medseg_core.errors import MedsegError
from medseg_fusion.models.dual_unet import FourWay, attentions, fusions, level_widths, projections
from medseg_fusion.models.inputs import MODALITIES, check_arguments, entered, gated, padded
from medseg_fusion.models.unet import Decoder, Encoder, norm_of
from medseg_fusion.models.vgg import VGGTrunk


class EarlyConcat(nn.Module):
    """A plain U-Net on both channels: (N, 2, H, W) -> (N, K, H, W) logits, for any H and W.

    Five levels of the four-way network's blocks; the coarsest has the width that makes it as large as what FourWay
    trains at the same `width`: 32, 64, 128, 256, 522 channels and 8,769,369 parameters for 32 and K 1.

    Args:
        in_channels: 2.
        num_classes: K.
        width, norm: as for FourWay.

    Raises:
        MedsegError: an argument out of its range; later, an input of another shape.
    """

    def __init__(self, in_channels: int = 2, num_classes: int = 1, *, width: int = 32, norm: str = "layer") -> None:
        super().__init__()
        check_arguments(in_channels, num_classes, width)
        widths = (*level_widths(width), matched_width(width, num_classes))
        self.encoder = Encoder(in_channels, widths, norm_of(norm))
        self.decoder = Decoder(widths, widths[:-1], num_classes, norm_of(norm))

    def forward(self, x_N2HW: Tensor, present_N2: Tensor | None = None) -> Tensor:
        """`present_N2` is 1 where a slice has CT and PET; a missing picture is taken for 0."""
        x_N2HW, crop = padded(entered(x_N2HW, present_N2)[0])
        *skips, x_NChw = self.encoder(x_N2HW)
        return self.decoder(x_NChw, skips)[..., *crop]


class Single(nn.Module):
    """The U-Net of EarlyConcat on one of the two channels: (N, 2, H, W) -> (N, K, H, W) logits, for any H and W.

    Args:
        in_channels: 2, so that it takes what the others take.
        num_classes: K.
        modality: "ct" or "pet"; the other channel is ignored.
        width, norm: as for FourWay.

    Raises:
        MedsegError: an argument out of its range; later, an input of another shape.
    """

    def __init__(
        self,
        in_channels: int = 2,
        num_classes: int = 1,
        *,
        modality: str = "pet",
        width: int = 32,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        check_arguments(in_channels, num_classes, width)
        if modality not in MODALITIES:
            raise MedsegError(f"modality is {modality!r}; it must be 'ct' or 'pet'")
        self.channel = MODALITIES.index(modality)
        widths = (*level_widths(width), matched_width(width, num_classes))
        self.encoder = Encoder(1, widths, norm_of(norm))
        self.decoder = Decoder(widths, widths[:-1], num_classes, norm_of(norm))

    def forward(self, x_N2HW: Tensor, present_N2: Tensor | None = None) -> Tensor:
        """As for EarlyConcat."""
        x_N2HW, crop = padded(entered(x_N2HW, present_N2)[0])
        *skips, x_NChw = self.encoder(x_N2HW[:, self.channel : self.channel + 1])
        return self.decoder(x_NChw, skips)[..., *crop]


class V1(nn.Module):
    """The three-way network: one encoder for both channels, a frozen VGG19 for each, and batch norm.

    (N, 2, H, W) -> (N, K, H, W) logits, for any H and W. After CoCoNet (Liu et al., 2023): channel attention and
    fusion of the three streams at 1/2, 1/4 and 1/8, and the encoder's own features as the skip at full size.
    11,439,492 parameters at width 32 and K 1: 6,790,660 trainable, 4,648,832 frozen.

    Args:
        in_channels: 2.
        num_classes: K.
        width, attention: as for FourWay.

    Raises:
        MedsegError: an argument out of its range; later, an input of another shape.
    """

    def __init__(
        self, in_channels: int = 2, num_classes: int = 1, *, width: int = 32, attention: str = "scaled"
    ) -> None:
        super().__init__()
        check_arguments(in_channels, num_classes, width)
        widths = level_widths(width)
        self.encoder = Encoder(in_channels, widths, nn.BatchNorm2d)
        self.vgg_ct, self.vgg_pet = VGGTrunk(), VGGTrunk()
        self.project = projections(widths)
        self.attend = attentions(widths[1:], attention)
        self.fuse = fusions(widths, 3, nn.BatchNorm2d)
        self.decoder = Decoder(widths, widths[:-1], num_classes, nn.BatchNorm2d)

    def forward(self, x_N2HW: Tensor, present_N2: Tensor | None = None) -> Tensor:
        """`present_N2` is 1 where a slice has CT and PET; a missing picture and its VGG features are set to 0."""
        x_N2HW, there_N2 = entered(x_N2HW, present_N2)
        x_N2HW, crop = padded(x_N2HW)
        finest_NChw, *levels = self.encoder(x_N2HW)
        trunks = (self.vgg_ct(x_N2HW[:, :1]), self.vgg_pet(x_N2HW[:, 1:]))
        fused = []
        for scale, (project, attend, fuse) in enumerate(zip(self.project, self.attend, self.fuse, strict=True)):
            vgg = [gated(project(trunk[scale]), there_N2, modality) for modality, trunk in enumerate(trunks)]
            fused.append(fuse(torch.cat([attend(x_NChw) for x_NChw in (levels[scale], *vgg)], 1)))
        return self.decoder(fused[-1], [finest_NChw, *fused[:-1]])[..., *crop]


@cache
def matched_width(width: int, num_classes: int) -> int:
    """Channels of a fifth level with which EarlyConcat has as many parameters as FourWay trains.

    d channels cost 9 (8w d + d d + d 8w) + 2d more than none; this is solved for d.
    """
    widths = level_widths(width)
    with torch.device("meta"):
        target = _num_trainable(FourWay(2, num_classes, width=width))
        norm = norm_of("layer")
        others = nn.ModuleList([Encoder(2, (*widths, 1), norm), Decoder((*widths, 1), widths, num_classes, norm)])
        linear = 18 * widths[-1] + 2
        left = target - (_num_trainable(others) - linear - 9)
    return max(1, round((math.sqrt(linear**2 + 36 * left) - linear) / 18))


def _num_trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
