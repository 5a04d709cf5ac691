"""Small real parts of which the contract speaks and that every domain brings by itself, and a net that is known."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = {"batch_size": 4, "precision": "fp32", "device": "cpu", "schedule": "constant"}


class UNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.down(x_NCHW)
        deep = F.interpolate(self.deep(F.avg_pool2d(y, 2)), size=y.shape[2:])
        return self.head(torch.cat([y, deep], 1))


class Steps(nn.Module):
    """Class 0 below a third, 1 below two thirds, 2 above: the highest of the lines 0, x - 1/3 and 2 x - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = nn.Conv2d(1, 3, 1)
        self.lines.weight.data = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
        self.lines.bias.data = torch.tensor([0.0, -1 / 3, -1.0])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.lines(x_NCHW)


def dice_of(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
