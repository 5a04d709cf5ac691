"""Encoders by name: each turns a picture into levels, finest first. Axes: N images, C channels, H W, h w of a level."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError, meant
from medseg_sem_al.models.unet import UNetEncoder

LEVELS = 5
CNN = {name: name for name in ("resnet18", "resnet34", "resnet50", "efficientnet_b0", "efficientnet_b4")}
CNN |= {"efficientnet_b5": "efficientnet_b5"}
VIT = {
    "vit_tiny": "vit_tiny_patch16_224",
    "dinov2_small": "vit_small_patch14_dinov2",
    "dinov2_base": "vit_base_patch14_dinov2",
    "dinov2_large": "vit_large_patch14_dinov2",
}
ENCODERS = ("unet", *CNN, *VIT)
TOKEN = 16  # pixels of the input along the edge of a token, whatever the network's own patch
BLOCKS = 4  # whose tokens become levels


def encoder_of(name: str, in_channels: int, width: int = 16) -> nn.Module:
    """An encoder with random weights.

    It has `widths` and `strides`, of each level its channels and the pixels from one value to the next, and takes
    (N, C, H, W) whose H and W are multiples of `multiple`.

    Args:
        name: of `ENCODERS`.
        in_channels: C.
        width: of the U-Net's finest level; each next has twice as many.

    Raises:
        MedsegError: an unknown name.
    """
    if name == "unet":
        return UNetEncoder(in_channels, [width * 2**level for level in range(LEVELS)])
    if name in CNN:
        return CNNEncoder(name, in_channels)
    if name in VIT:
        return ViTEncoder(name, in_channels)
    raise MedsegError(f"there is no encoder {name!r}{meant(name, ENCODERS)}; take one of {', '.join(ENCODERS)}")


def of_timm(name: str, in_channels: int, **how: Any) -> nn.Module:
    """A network of timm without its classes; random weights, unless `how` says otherwise."""
    import timm  # takes seconds

    how = {"dynamic_img_size": True, "num_classes": 0, **how} if name in VIT else how
    return timm.create_model((CNN | VIT)[name], in_chans=in_channels, **{"pretrained": False, **how})


class CNNEncoder(nn.Module):
    """The levels of a convolutional network of timm, at 1/2 to 1/32.

    Args:
        name: one of `CNN`.
        in_channels: C.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        self.name, self.in_channels = name, in_channels
        self.body = of_timm(name, in_channels, features_only=True)
        self.widths = tuple(self.body.feature_info.channels())
        self.strides = tuple(self.body.feature_info.reduction())
        self.multiple = self.strides[-1]

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """(N, width, h, w) of each level."""
        return self.body(x_NCHW)


class ViTEncoder(nn.Module):
    """The tokens after four blocks of a vision transformer of timm, evenly spaced, all at 1/16.

    The picture is scaled so that a token covers 16 x 16 of its pixels, whether the network's patch has 16 or 14 of
    them; position embeddings are interpolated to its size.

    Args:
        name: one of `VIT`.
        in_channels: C.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        self.name, self.in_channels = name, in_channels
        self.body = of_timm(name, in_channels)
        self.patch = self.body.patch_embed.patch_size[0]
        depth = len(self.body.blocks)
        self.blocks = tuple(depth * (k + 1) // BLOCKS - 1 for k in range(BLOCKS))
        self.widths, self.strides = (self.body.embed_dim,) * BLOCKS, (TOKEN,) * BLOCKS
        self.multiple = 2 * TOKEN

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """(N, width, h, w) of each block."""
        return self.body.forward_intermediates(
            self.scaled(x_NCHW), indices=list(self.blocks), norm=True, intermediates_only=True
        )

    def scaled(self, x_NCHW: Tensor) -> Tensor:
        """The picture with `patch` pixels where it has 16."""
        if self.patch == TOKEN:
            return x_NCHW
        size = [edge * self.patch // TOKEN for edge in x_NCHW.shape[2:]]
        return F.interpolate(x_NCHW, size, mode="bilinear", antialias=True)


class Pyramid(nn.Module):
    """Tokens at 1/16 of four blocks -> levels at 1/4, 1/8, 1/16 and 1/32, as in ViTDet (Li et al., 2022).

    Args:
        dim: channels of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widths = tuple(max(dim // share, 1) for share in (4, 2, 1, 1))
        finest, fine, same, coarse = self.widths
        double = lambda before, after: nn.ConvTranspose2d(before, after, 2, stride=2)  # noqa: E731
        to_finest = nn.Sequential(double(dim, fine), nn.GroupNorm(1, fine), nn.GELU(), double(fine, finest))
        halved = nn.Conv2d(dim, coarse, 2, stride=2)
        self.scales = nn.ModuleList([to_finest, double(dim, fine), nn.Conv2d(dim, same, 1), halved])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """(N, width, h, w) of each level."""
        return [scale(x) for scale, x in zip(self.scales, levels, strict=True)]


def load_pretrained(encoder: nn.Module, file: Path | None = None) -> tuple[int, int]:
    """Fills an encoder of timm with weights that others trained, from timm's hub or a .safetensors of its kind.

    Returns:
        How many values were filled, of how many.

    Raises:
        MedsegError: an encoder that is not timm's, weights that cannot be had, or less than 90 % of it filled.
    """
    if not isinstance(encoder, (CNNEncoder, ViTEncoder)):
        raise MedsegError("nobody published weights of this U-Net; choose --encoder, or leave out --pretrained")
    if file and file.suffix != ".safetensors":
        raise MedsegError(f"{file} is no .safetensors; convert it, for a run's kind by medseg checkpoint import")
    own = encoder.body.state_dict()
    try:
        how = _of_file(file, encoder) if file else {}
        donor = of_timm(encoder.name, encoder.in_channels, pretrained=True, **how)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MedsegError(f"no weights of {encoder.name} from {file or 'the hub'}: {why:.200}") from None
    given = {name: tensor for name, tensor in donor.state_dict().items() if name in own}
    given = {name: tensor for name, tensor in given.items() if tensor.shape == own[name].shape}
    filled, total = (sum(tensor.numel() for tensor in some.values()) for some in (given, own))
    if filled < 0.9 * total:
        raise MedsegError(f"{file or 'the hub'} fills {filled:,} of the {total:,} values of {encoder.name}: too few")
    encoder.body.load_state_dict({**own, **given})
    return filled, total


def _of_file(file: Path, encoder: CNNEncoder | ViTEncoder) -> dict[str, Any]:
    """What timm needs to know: the file, and how many classes it tells apart, as it takes any rest without a word."""
    from timm import get_pretrained_cfg

    head = f"{get_pretrained_cfg((CNN | VIT)[encoder.name]).classifier}.weight"
    with safe_open(file, "pt") as weights:
        num = weights.get_slice(head).get_shape()[0] if head in set(weights.keys()) else 0
    return {"num_classes": num, "pretrained_cfg_overlay": {"file": str(file), "num_classes": num}}
