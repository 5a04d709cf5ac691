"""The first eight convolutions of VGG19 (Simonyan and Zisserman, 2015) for grey pictures, frozen; never a download.

Axes: N slices, F filters, C channels, H W rows and columns, h w those of a level; 3 is red, green, blue.

ImageNet's input is (g - mean_c) / std_c in each colour c, and zeros around it. With r_c the share of the grey value g
that colour c gets, the first convolution of weights W_c is
    sum_c W_c * r_c (g - mean_c) / std_c  =  (sum_c W_c r_c / std_c) * g  -  (sum_c W_c r_c mean_c / std_c) * 1,
where 1 is a picture of ones with zeros around it. The second term is a constant inside and another one at the border,
so it stays a convolution: `offset` holds its weights, and the sum is exact up to the last pixel.
"""

from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.checkpoint import Matched, freeze
from medseg_core.errors import MedsegError
from medseg_core.foreign import read_foreign

WIDTHS = (64, 128, 256)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet in 0..1, red, green, blue
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
REPLICATED = (1.0, 1.0, 1.0)  # the grey picture given to each colour
FILE = "vgg19-dcbb9e9d.pth"  # torchvision's VGG19_Weights.IMAGENET1K_V1
URL = f"https://download.pytorch.org/models/{FILE}"
PLACES = dict(  # of torchvision's `features`
    zip(
        (0, 2, 5, 7, 10, 12, 14, 16),
        ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv3_4"),
        strict=True,
    )
)
DEEPER = (19, 21, 23, 25, 28, 30, 32, 34)


class VGGTrunk(nn.Module):
    """relu1_2, relu2_2 and relu3_4 of a grey picture of 0 to 1: (N, 1, H, W) -> 64 at 1/2, 128 at 1/4, 256 at 1/8.

    As in CoCoNet (Liu et al., 2023) one max pool more, after relu1_1, puts them on the grids of a U-Net's levels.
    2,324,416 parameters, none of them trained, and the buffer `offset` of 576. It is always in eval mode. Before
    `load_vgg` the weights are random (He et al., 2015).
    """

    def __init__(self) -> None:
        super().__init__()
        one, two, three = WIDTHS
        self.conv1_1, self.conv1_2 = nn.Conv2d(1, one, 3, padding=1), nn.Conv2d(one, one, 3, padding=1)
        self.conv2_1, self.conv2_2 = nn.Conv2d(one, two, 3, padding=1), nn.Conv2d(two, two, 3, padding=1)
        self.conv3_1, self.conv3_2 = nn.Conv2d(two, three, 3, padding=1), nn.Conv2d(three, three, 3, padding=1)
        self.conv3_3, self.conv3_4 = nn.Conv2d(three, three, 3, padding=1), nn.Conv2d(three, three, 3, padding=1)
        self.register_buffer("offset", torch.empty_like(self.conv1_1.weight, requires_grad=False))
        self._draw()
        freeze(self)

    def forward(self, grey_N1HW: Tensor) -> list[Tensor]:
        """H and W are multiples of 8."""
        pair_N2HW = torch.cat([grey_N1HW, torch.ones_like(grey_N1HW)], 1)
        weight_F2hw = torch.cat([self.conv1_1.weight, self.offset], 1)
        relu1_1 = F.relu(F.conv2d(pair_N2HW, weight_F2hw, self.conv1_1.bias, padding=1))
        relu1_2 = F.relu(self.conv1_2(F.max_pool2d(relu1_1, 2)))
        relu2_1 = F.relu(self.conv2_1(F.max_pool2d(relu1_2, 2)))
        relu2_2 = F.relu(self.conv2_2(relu2_1))
        x_NChw = F.max_pool2d(relu2_2, 2)
        for conv in (self.conv3_1, self.conv3_2, self.conv3_3, self.conv3_4):
            x_NChw = F.relu(conv(x_NChw))
        return [relu1_2, relu2_2, x_NChw]

    def train(self, mode: bool = True) -> "VGGTrunk":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def _draw(self) -> None:
        for name in PLACES.values():
            conv = getattr(self, name)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        rgb_F3hw = torch.empty(WIDTHS[0], 3, 3, 3)
        nn.init.kaiming_normal_(rgb_F3hw, nonlinearity="relu")
        weight_F1hw, offset_F1hw = fold(rgb_F3hw)
        self.conv1_1.weight.copy_(weight_F1hw)
        self.offset.copy_(offset_F1hw)


def fold(rgb_F3hw: Tensor, shares: Sequence[float] = LUMA) -> tuple[Tensor, Tensor]:
    """Weights for the grey picture and for the picture of ones, (F, 1, h, w) float64 each; see the top of the file.

    Args:
        rgb_F3hw: the first convolution of a network for ImageNet's normalised colours.
        shares: what each colour gets of the grey value.
    """
    shares_31, mean_31, std_31 = (
        torch.tensor(numbers, dtype=torch.float64, device=rgb_F3hw.device)[:, None, None]
        for numbers in (shares, MEAN, STD)
    )
    scaled_F3hw = rgb_F3hw.double() * shares_31 / std_31
    return scaled_F3hw.sum(1, keepdim=True), -(scaled_F3hw * mean_31).sum(1, keepdim=True)


def load_vgg(trunk: VGGTrunk, file: Path, *, shares: Sequence[float] = LUMA) -> Matched:
    """Fills a trunk from a state dict of torchvision's VGG19, "features.0.weight" or "0.weight", or changes nothing.

    Args:
        file: .pth, opened for its tensors only, or .safetensors.
        shares: as for `fold`.

    Returns:
        16 tensors matched; `ignored` are those of the deeper layers and of the classifier.

    Raises:
        MedsegError: a file that cannot be read, a tensor that is missing, unknown, or of another shape.
    """
    file = Path(file)
    tensors = {name.removeprefix("features."): tensor for name, tensor in _read(file).items()}
    wanted = {f"{place}.{kind}": f"{conv}.{kind}" for place, conv in PLACES.items() for kind in ("weight", "bias")}
    missing = [name for name in wanted if name not in tensors]
    others = sorted(tensors.keys() - wanted.keys())
    unknown = [name for name in others if not _is_deeper(name)]
    if missing or unknown:
        first = f"lacks 'features.{missing[0]}'" if missing else f"has an unknown {unknown[0]!r}"
        counts = f"{len(wanted) - len(missing)} of {len(wanted)} tensors match"
        raise MedsegError(f"{file} {first}, {counts}; give torchvision's VGG19 without batch norm, {URL}")
    own = trunk.state_dict()
    filled = {}
    for name, ours in wanted.items():
        tensor, shape = tensors[name], tuple(own[ours].shape)
        shape = (shape[0], 3, *shape[2:]) if ours == "conv1_1.weight" else shape
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            shapes = f"{tuple(tensor.shape)} {tensor.dtype}, and VGG19 has {shape}"
            raise MedsegError(f"{file}: 'features.{name}' is {shapes}; give torchvision's VGG19, {URL}")
        filled[ours] = tensor
    filled["conv1_1.weight"], filled["offset"] = fold(filled["conv1_1.weight"], shares)
    trunk.load_state_dict(filled)
    return Matched(len(wanted), ignored=tuple(others))


def vgg_weights(choice: str) -> Path | None:
    """The file that a setting means: "imagenet", a file, or None for "random".

    "imagenet" is the file that torchvision leaves in the folder of torch.hub, $TORCH_HOME/hub/checkpoints.

    Raises:
        MedsegError: there is no such file.
    """
    if choice == "random":
        return None
    if choice != "imagenet":
        if not Path(choice).is_file():
            raise MedsegError(f"no file {choice} of VGG19 weights; give a file, or --vgg imagenet, or --vgg random")
        return Path(choice)
    file = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not file.is_file():
        place = f"fetch {URL} and put it there, or name it with --vgg FILE, or go without with --vgg random"
        raise MedsegError(f"no VGG19 weights at {file}, and none are downloaded unasked; {place}")
    return file


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return read_foreign(file)
    if not file.is_file():
        raise MedsegError(f"no file {file}; give the weights of VGG19, .pth or .safetensors")
    try:
        return safetensors.torch.load_file(file)
    except (OSError, MemoryError, safetensors.SafetensorError) as error:
        raise MedsegError(f"{file} is not a readable safetensors file ({error}); fetch it again") from None


def _is_deeper(name: str) -> bool:
    place, _, kind = name.removeprefix("classifier.").rpartition(".")
    deeper = (0, 3, 6) if name.startswith("classifier.") else DEEPER
    return kind in ("weight", "bias") and place in map(str, deeper)
