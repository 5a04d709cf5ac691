"""The four-way network: a U-Net encoder and a frozen VGG19 for CT and for PET, fused at three scales.

Axes: N slices, K classes, H W rows and columns, h w those of a level; the two channels are CT and PET.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medseg_core.errors import MedsegError
from medseg_fusion.models.attention import ChannelAttention
from medseg_fusion.models.inputs import check_arguments, entered, gated, padded
from medseg_fusion.models.unet import Decoder, Encoder, Norm, conv_block, norm_of
from medseg_fusion.models.vgg import WIDTHS, VGGTrunk


class FourWay(nn.Module):
    """Logits for each pixel of a slice: (N, 2, H, W) -> (N, K, H, W), for any H and W.

    13,418,341 parameters at width 32 and K 1: 8,769,509 trainable, 4,648,832 frozen in two VGG trunks. One channel
    attention per scale serves all streams of it: four at 1/2, 1/4 and 1/8, the two encoders at full size. A fusion is
    a 3x3 convolution of the four results side by side, leaky ReLU, norm.

    The values are 0 to 1. Pictures are reflected up to multiples of 16 and at least 32, and the logits cropped back.

    Args:
        in_channels: 2.
        num_classes: K.
        width: channels at full size; the coarser scales have 2, 4 and 8 times as many. VGG has 64, 128 and 256, so
            at a width other than 32 a 1x1 convolution per scale, shared by both modalities, brings them to the width.
        attention: "scaled" energies, or "unscaled" for weights that were trained so.
        norm: "layer", or "instance" as it was first described; see `norm_of`.

    Raises:
        MedsegError: an argument out of its range; later, an input of another shape.
    """

    def __init__(
        self,
        in_channels: int = 2,
        num_classes: int = 1,
        *,
        width: int = 32,
        attention: str = "scaled",
        norm: str = "layer",
    ) -> None:
        super().__init__()
        check_arguments(in_channels, num_classes, width)
        widths, make_norm = level_widths(width), norm_of(norm)
        self.encoder_ct = Encoder(1, widths, make_norm)
        self.encoder_pet = Encoder(1, widths, make_norm)
        self.vgg_ct, self.vgg_pet = VGGTrunk(), VGGTrunk()
        self.project = projections(widths)
        self.attend = attentions(widths, attention)
        self.fuse = fusions(widths, 4, make_norm)
        self.decoder = Decoder(widths, (2 * widths[0], *widths[1:3]), num_classes, make_norm)

    def forward(self, x_N2HW: Tensor, present_N2: Tensor | None = None) -> Tensor:
        """`present_N2` is 1 where a slice has CT and PET; of what is missing nothing reaches the logits.

        A missing picture is taken for 0, and the features of its two streams are set to 0 before attention.
        """
        x_N2HW, there_N2 = entered(x_N2HW, present_N2)
        x_N2HW, crop = padded(x_N2HW)
        ct = self._features(self.encoder_ct, self.vgg_ct, x_N2HW, there_N2, 0)
        pet = self._features(self.encoder_pet, self.vgg_pet, x_N2HW, there_N2, 1)
        # per scale the streams side by side: encoders (ct, pet), then VGG (ct, pet)
        attended = [
            torch.cat([attend(x_NChw) for x_NChw in (*encoders, *trunks)], 1)
            for attend, encoders, trunks in zip(
                self.attend, zip(ct[0], pet[0], strict=True), [(), *zip(ct[1], pet[1], strict=True)], strict=True
            )
        ]
        fused = [fuse(x_NChw) for fuse, x_NChw in zip(self.fuse, attended[1:], strict=True)]
        return self.decoder(fused[-1], [attended[0], *fused[:-1]])[..., *crop]

    def _features(
        self, encoder: Encoder, vgg: VGGTrunk, x_N2HW: Tensor, there_N2: Tensor | None, modality: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of one modality: the encoder's four levels, and VGG's three."""
        grey_N1HW = x_N2HW[:, modality : modality + 1]
        trunk = [project(x_NChw) for project, x_NChw in zip(self.project, vgg(grey_N1HW), strict=True)]
        return (
            [gated(x_NChw, there_N2, modality) for x_NChw in encoder(grey_N1HW)],
            [gated(x_NChw, there_N2, modality) for x_NChw in trunk],
        )


def level_widths(width: int) -> tuple[int, int, int, int]:
    """Channels at 1, 1/2, 1/4 and 1/8 of the size."""
    return width, 2 * width, 4 * width, 8 * width


def projections(widths: Iterable[int]) -> nn.ModuleList:
    """From VGG's channels to those of the levels at 1/2, 1/4 and 1/8; nothing where they agree."""
    pairs = zip(WIDTHS, tuple(widths)[1:], strict=True)
    return nn.ModuleList(nn.Identity() if vgg == width else nn.Conv2d(vgg, width, 1) for vgg, width in pairs)


def attentions(widths: Iterable[int], attention: str) -> nn.ModuleList:
    """One per width.

    Raises:
        MedsegError: `attention` is neither "scaled" nor "unscaled".
    """
    if attention not in ("scaled", "unscaled"):
        raise MedsegError(f"attention is {attention!r}; it must be 'scaled' or 'unscaled'")
    return nn.ModuleList(ChannelAttention(width, scaled=attention == "scaled") for width in widths)


def fusions(widths: Iterable[int], streams: int, norm: Norm) -> nn.ModuleList:
    """From so many streams side by side to one, at 1/2, 1/4 and 1/8."""
    return nn.ModuleList(conv_block(streams * width, width, norm) for width in tuple(widths)[1:])
