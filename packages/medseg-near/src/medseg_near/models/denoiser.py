"""Occupancy at points, from a label with errors and what its surroundings look like: a convolutional occupancy network.

Peng et al., Convolutional Occupancy Networks, ECCV 2020, over a U-Net, trained as a denoising autoencoder (Vincent et
al., 2008; for labels Larrazabal et al., Post-DAE, 2020). Norms see one voxel at a time: what it becomes depends on the
voxels about it, and on nothing of how large the crop is.

Axes: N cases, C channels, P points, X Y Z voxels of the lattice.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError
from medseg_near.models.trunk import SLOPE, looked_up

FACTORS = (1, 2, 3)  # of the width, level by level; the first has half of the lattice's points along each edge
FINE, HIDDEN = 8, 32  # channels of a point of the lattice, and of the network that is asked there
REACH = 64  # points of the lattice, at least as far as what a point becomes depends on
CERTAINTY = 2.0  # logits between inside and outside of the label, before anything is learnt
LAYOUT = torch.channels_last_3d


class Denoiser(nn.Module):
    """What a label should have been, at any point.

    Args:
        in_channels: of what is seen, the label first; 2 with a CT.
        num_classes: one.
        width: channels of the finest level; 1.12 million parameters with 32.
        cell_mm: distance of neighbouring points of the lattice on which the label is read.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 1, *, width: int = 32, cell_mm: float = 1.0) -> None:
        super().__init__()
        if num_classes != 1 or in_channels < 1:
            raise MedsegError(f"a denoiser reads a label and has one class, got {in_channels} and {num_classes}")
        self.in_channels, self.cell_mm = in_channels, cell_mm
        widths = [factor * width for factor in FACTORS]
        self.down = nn.ModuleList(_Level(a, b) for a, b in pairwise((8 * in_channels, *widths)))
        self.up = nn.ModuleList(_Level(a + b, a) for a, b in reversed(list(pairwise(widths))))
        self.fine = nn.Conv3d(width, 8 * FINE, 1)
        self.head = nn.Sequential(nn.Linear(FINE + in_channels, HIDDEN), nn.LeakyReLU(SLOPE), nn.Linear(HIDDEN, 1))
        self.certainty = nn.Parameter(torch.tensor([CERTAINTY]))
        for value in self.head[-1].parameters():
            nn.init.zeros_(value)
        self.to(memory_format=LAYOUT)

    def forward(self, seen_NCXYZ: Tensor, at_NP3: Tensor, here_NPC: Tensor) -> Tensor:
        """(N, P) logits; see `features` and `at`."""
        return self.at(self.features(seen_NCXYZ), at_NP3, here_NPC)

    def features(self, seen_NCXYZ: Tensor) -> Tensor:
        """(N, 8, X, Y, Z) from what is seen on a lattice of any size: the label, 0 to 1, and the CT, 0 to 1."""
        size = seen_NCXYZ.shape[2:]
        wide = [(0, -n % 2 ** len(FACTORS)) for n in reversed(size)]
        x = folded(F.pad(seen_NCXYZ, [n for pair in wide for n in pair])).contiguous(memory_format=LAYOUT)
        kept = []
        for number, level in enumerate(self.down):
            x = level(F.max_pool3d(x, 2) if number else x)
            kept.append(x)
        kept.pop()
        for level in self.up:
            x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
            x = level(torch.cat([x, kept.pop()], 1))
        return unfolded(self.fine(x))[..., : size[0], : size[1], : size[2]]

    def at(self, features_NCXYZ: Tensor, at_NP3: Tensor, here_NPC: Tensor) -> Tensor:
        """(N, P) logits at points.

        Args:
            features_NCXYZ: of `features`.
            at_NP3: places on the lattice, in its points, first to last along X, Y, Z; beyond it its edge holds.
            here_NPC: label and CT at these points, trilinear between the voxels of the file.
        """
        last = at_NP3.new_tensor([max(n - 1, 1) for n in features_NCXYZ.shape[2:]])
        found_NPC = looked_up(features_NCXYZ, 2 * at_NP3 / last - 1)
        change_NP = self.head(torch.cat([found_NPC, here_NPC.to(found_NPC.dtype)], -1))[..., 0]
        return change_NP.float() + self.certainty * (here_NPC[..., 0] - 0.5)


def folded(x_NCXYZ: Tensor) -> Tensor:
    """(N, 8 C, X / 2, Y / 2, Z / 2): each block of 2 x 2 x 2 becomes channels; nothing is lost."""
    n, c, *size = x_NCXYZ.shape
    x, y, z = (edge // 2 for edge in size)
    return x_NCXYZ.reshape(n, c, x, 2, y, 2, z, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, 8 * c, x, y, z)


def unfolded(x_NCXYZ: Tensor) -> Tensor:
    """`folded` undone: (N, C, X, Y, Z) -> (N, C / 8, 2 X, 2 Y, 2 Z)."""
    n, c, x, y, z = x_NCXYZ.shape
    blocks = x_NCXYZ.reshape(n, c // 8, 2, 2, 2, x, y, z).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return blocks.reshape(n, c // 8, 2 * x, 2 * y, 2 * z)


class _Level(nn.Module):
    """Two convolutions, each with a norm of every voxel by itself; the second adds to the first."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(n, after, 3, padding=1) for n in (before, after))
        self.norms = nn.ModuleList(nn.LayerNorm(after) for _ in range(2))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, a=SLOPE)
            nn.init.zeros_(conv.bias)

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        x_NCXYZ = self._half(0, x_NCXYZ)
        return x_NCXYZ + self._half(1, x_NCXYZ)

    def _half(self, number: int, x_NCXYZ: Tensor) -> Tensor:
        normed = self.norms[number](self.convs[number](x_NCXYZ).movedim(1, -1)).movedim(-1, 1)
        return F.leaky_relu(normed, SLOPE)
