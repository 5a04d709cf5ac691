"""Features of a shape in the cube [-1, 1]^3, from a latent vector (Yang et al., Neural Annotation Refinement, 2022).

Axes: N cases, C channels, P points; X Y Z run from left to right, to anterior and to superior.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS, SLOPE = 8, 0.01
WIDTHS = (64, 48, 32, 16)  # of the maps at 4, 8, 16 and 32 voxels
LAYOUT = torch.channels_last_3d


class Trunk(nn.Module):
    """(N, L) latents -> maps (N, 64, 4, 4, 4), (N, 48, 8, 8, 8), (N, 32, 16, 16, 16), (N, 16, 32, 32, 32).

    678,656 parameters with L = 256.

    Args:
        align_corners: whether a map and its double have their end voxels at the same places, as in NeAR.
    """

    def __init__(self, latent: int = 256, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        coarse = WIDTHS[0]
        self.unfold2 = _Unfolded(latent, 8 * 128)
        self.unfold4 = _Unfolded(128, 8 * coarse)
        self.start = _layer(coarse, coarse, edge=3)
        self.doublings = nn.ModuleList(
            nn.Sequential(_layer(a, b, edge=3), _layer(b, b, edge=3)) for a, b in pairwise(WIDTHS)
        )
        self.to(memory_format=LAYOUT)

    def forward(self, latent_NL: Tensor) -> list[Tensor]:
        """The coarsest first."""
        num = len(latent_NL)
        if num == 1 and latent_NL.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            latent_NL = latent_NL.expand(2, -1)  # PyTorch has no fast convolution of one small float32 case
        x_NCXYZ = self.unfold4(self.unfold2(latent_NL[..., None, None, None])).contiguous(memory_format=LAYOUT)
        maps = [x_NCXYZ := self.start(x_NCXYZ)]
        for block in self.doublings:
            twice_NCXYZ = F.interpolate(x_NCXYZ, scale_factor=2, mode="trilinear", align_corners=self.align_corners)
            x_NCXYZ = block(twice_NCXYZ)
            maps.append(x_NCXYZ)
        return [one[:num] for one in maps]


def looked_up(map_NCXYZ: Tensor, points_NP3: Tensor) -> Tensor:
    """(N, P, C) of a map at points of [-1, 1]^3, trilinear; -1 and 1 are the middles of its end voxels."""
    at_NP113 = points_NP3.flip(-1)[:, :, None, None]  # PyTorch wants the last axis first
    map_NCXYZ = map_NCXYZ.to(points_NP3.dtype)  # places in half precision would be a quarter of a voxel off
    found_NCP11 = F.grid_sample(map_NCXYZ, at_NP113, padding_mode="border", align_corners=True)
    return found_NCP11[..., 0, 0].transpose(1, 2)


class _Unfolded(nn.Module):
    """Eight times the channels, read as a cube of twice the edge; a plain reshape, as the original's."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.layer = _layer(before, after, edge=1)

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        n, c, *edges = (y_NCXYZ := self.layer(x_NCXYZ)).shape
        return y_NCXYZ.reshape(n, c // 8, *(2 * edge for edge in edges))


def _layer(before: int, after: int, *, edge: int) -> nn.Sequential:
    conv = nn.Conv3d(before, after, edge, padding=edge // 2)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, after), nn.LeakyReLU(SLOPE, inplace=True))
