"""Occupancy at points, from a latent vector for each shape: the auto-decoder and its variants.

Axes: N cases, P points, C channels, L numbers of a latent. Points lie in [-1, 1]^3, from left to right, to anterior and
to superior.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError
from medseg_near.models.triplane import TRIPLANE_CHANNELS, Triplane
from medseg_near.models.trunk import GROUPS, SLOPE, WIDTHS, Trunk, looked_up

PRIOR = 0.01  # share of the cube that is inside before anything is learnt
OCTAVES = 6  # of the triplane variant's waves: the finest is a 32nd of the cube long
Net = Literal["pointwise", "triplane", "original", "upstream"]
NETS: tuple[Net, ...] = ("pointwise", "triplane", "original", "upstream")
OLD_NETS: dict[Net, str] = {"original": "decoder.fc1.0.weight", "upstream": "decoder.implicit_mlp.0.weight"}


class PointNorm(nn.GroupNorm):
    """GroupNorm of each point by itself, (N, P, C): what a point becomes does not depend on its companions."""

    def forward(self, x_NPC: Tensor) -> Tensor:
        width = x_NPC.shape[-1] // self.num_groups
        each = F.layer_norm(x_NPC.unflatten(-1, (-1, width)), (width,), eps=self.eps)  # faster than `group_norm`
        return each.flatten(-2) * self.weight + self.bias


class SetNorm(nn.GroupNorm):
    """GroupNorm over all points of a case, (N, P, C), as the original has it: points change with their companions."""

    def forward(self, x_NPC: Tensor) -> Tensor:
        return super().forward(x_NPC.transpose(1, 2)).transpose(1, 2)


class Head(nn.Module):
    """(N, P, C) features -> (N, P) logits: C-256-256-(and C again)-128-64-1, or C-64-32-1 as upstream has it."""

    def __init__(self, channels: int, *, norm: type[nn.GroupNorm], small: bool = False) -> None:
        super().__init__()
        self.skips = not small
        widths = (
            ((channels, 64), (64, 32)) if small else ((channels, 256), (256, 256), (256 + channels, 128), (128, 64))
        )
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), norm(GROUPS, b), nn.LeakyReLU(SLOPE)) for a, b in widths
        )
        self.last = nn.Linear(widths[-1][1], 1)
        nn.init.constant_(self.last.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, x_NPC: Tensor) -> Tensor:
        y_NPC = x_NPC
        for number, layer in enumerate(self.layers):
            y_NPC = layer(torch.cat([y_NPC, x_NPC], -1) if self.skips and number == 2 else y_NPC)
        return self.last(y_NPC)[..., 0]


class Decoder(nn.Module):
    """A latent's field, asked at any points.

    Args:
        in_channels: values of a picture at each point, 0 or 1.
        net: "pointwise", the seed's network whose norms see one point at a time; "triplane" adds three planes of
            128 x 128 features and waves, for vessels; "original" is the seed's, "upstream" NeAR's, whose answers depend
            on all points asked for together.

    849,921 parameters, "upstream" 691,457, with a latent of 256 numbers and no picture.
    """

    def __init__(self, in_channels: int = 0, *, latent: int = 256, net: Net = "pointwise") -> None:
        super().__init__()
        if net not in NETS:
            raise MedsegError(f"net {net!r} is none of {', '.join(NETS)}")
        self.net, self.in_channels = net, in_channels
        self.trunk = Trunk(latent, align_corners=net in OLD_NETS)
        self.planes = Triplane(latent) if net == "triplane" else None
        more = TRIPLANE_CHANNELS + 6 * OCTAVES if net == "triplane" else 0
        norm = PointNorm if net in ("pointwise", "triplane") else SetNorm
        self.head = Head(3 + sum(WIDTHS) + more + in_channels, norm=norm, small=net == "upstream")

    def maps(self, latent_NL: Tensor) -> list[Tensor]:
        """What all points of a case share; reckoned once, however many points are asked for."""
        planes = [] if self.planes is None else [self.planes(latent_NL)]
        return [*self.trunk(latent_NL), *planes]

    def at(self, maps: list[Tensor], points_NP3: Tensor, picture_NPC: Tensor | None = None) -> Tensor:
        """(N, P) logits at points.

        Raises:
            MedsegError: a picture where none is meant, or none where one is.
        """
        if (0 if picture_NPC is None else picture_NPC.shape[-1]) != self.in_channels:
            got = "none" if picture_NPC is None else f"{picture_NPC.shape[-1]}"
            raise MedsegError(f"this network wants {self.in_channels} values of a picture at each point, got {got}")
        found = [points_NP3.flip(-1), *(looked_up(one, points_NP3) for one in maps[: len(WIDTHS)])]
        if self.planes is not None:
            found += [self.planes.at(maps[-1], points_NP3), waves(points_NP3)]
        return self.head(torch.cat([*found, *([] if picture_NPC is None else [picture_NPC])], -1))


class Shapes(nn.Module):
    """A latent for each case and the decoder that they share.

    Args:
        num_cases: rows of latents.
        half_mm: half the edge of the cube about a structure's middle that [-1, 1]^3 stands for.
        in_channels, num_classes, latent, net: as `Decoder`; one class.
    """

    # of files of NeAR and of the first NeAR for coronaries
    renames: ClassVar[Mapping[str, str | None]] = {
        "encoder": "latents",
        "decoder.decoder_1.0.mlp": "decoder.trunk.unfold2.layer",
        "decoder.decoder_1.1.mlp": "decoder.trunk.unfold4.layer",
        "decoder.decoder_1.2": "decoder.trunk.start",
        **{f"decoder.decoder_{n + 2}.{i + 1}": f"decoder.trunk.doublings.{n}.{i}" for n in range(3) for i in range(2)},
        **{f"decoder.fc{n + 1}": f"decoder.head.layers.{n}" for n in range(4)},
        "decoder.output": "decoder.head.last",
        **{f"decoder.implicit_mlp.{3 * n + i}": f"decoder.head.layers.{n}.{i}" for n in range(2) for i in range(2)},
        "decoder.implicit_mlp.6": "decoder.head.last",
    }
    card: ClassVar[Mapping[str, Any]] = {
        "inputs": ("case", "points"),
        "head": "sigmoid",
        "channels": (1,),
        "labels": {"1": "structure"},
    }

    def __init__(
        self,
        num_cases: int = 1,
        in_channels: int = 0,
        num_classes: int = 1,
        *,
        half_mm: float = 64.0,
        latent: int = 256,
        net: Net = "pointwise",
    ) -> None:
        super().__init__()
        if num_classes != 1 or num_cases < 1:
            raise MedsegError(f"a shape model has one class and a case at least, got {num_classes} and {num_cases}")
        self.half_mm = half_mm
        self.latents = nn.Embedding(num_cases, latent)
        nn.init.normal_(self.latents.weight, std=1 / math.sqrt(latent))
        self.decoder = Decoder(in_channels, latent=latent, net=net)

    def check_foreign(self, tensors: Mapping[str, Tensor]) -> None:
        """Whether a file of NeAR is for a network like this one; see `medseg_core.foreign.import_foreign`.

        Shapes alone cannot tell: the original's tensors fit the pointwise net, which makes something else of them.

        Raises:
            MedsegError: another net, other inputs, or latents of another number of cases or of another length.
        """
        net = next((net for net, name in OLD_NETS.items() if name in tensors), None)
        rows, latent = tuple(tensors["encoder.weight"].shape) if "encoder.weight" in tensors else (0, 0)
        if net is None or not rows:
            return
        in_channels = tensors[OLD_NETS[net]].shape[1] - 3 - sum(WIDTHS)
        theirs = {"num_cases": rows, "latent": latent, "net": net, "in_channels": in_channels}
        num_cases, own_latent = self.latents.weight.shape
        ours = {"num_cases": num_cases, "latent": own_latent, "net": self.decoder.net}
        ours |= {"in_channels": self.decoder.in_channels}
        if wrong := {name: value for name, value in theirs.items() if value != ours[name]}:
            told = ", ".join(f"{name} {value} where the network has {ours[name]}" for name, value in wrong.items())
            raise MedsegError(f"the file is of {told}; --arguments needs {json.dumps(wrong)[1:-1]}")

    def forward(self, case_N: Tensor, points_NP3: Tensor, picture_NPC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(N, P) logits at points of cases, and their latents (N, L)."""
        latent_NL = self.latents(case_N)
        return self.decoder.at(self.decoder.maps(latent_NL), points_NP3, picture_NPC), latent_NL


def waves(points_NP3: Tensor) -> Tensor:
    """(N, P, 6 * OCTAVES) sines and cosines of the places, an octave apart (Mildenhall et al., 2020)."""
    turns = math.pi * 2.0 ** torch.arange(OCTAVES, device=points_NP3.device, dtype=points_NP3.dtype)
    angles_NP3O = points_NP3[..., None] * turns
    return torch.cat([angles_NP3O.sin(), angles_NP3O.cos()], -1).flatten(-2)
