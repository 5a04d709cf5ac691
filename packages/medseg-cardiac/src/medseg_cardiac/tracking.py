"""Points and masks carried along by a displacement, and the displacement of every frame of a cycle.

Axes: T frames, H W a plane, P points (h, w) in pixels; D the two components of a displacement, of which component i
moves along array axis i. A displacement lives on the plane whose points it carries.
"""

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from medseg_cardiac.contours import outline, rasterise
from medseg_core.device import autocast


def cycle(model: nn.Module, frames: np.ndarray, ed: int, *, precision: str = "fp32", batch_size: int = 8) -> np.ndarray:
    """(T, D, H, W) float32: where each pixel of the frame at ED is found in every frame; 0 at ED itself.

    Args:
        frames: (T, H, W) float32, 0 to 1.
    """
    device = next(model.parameters()).device
    flows = np.zeros((len(frames), 2, *frames.shape[1:]), np.float32)
    others = [t for t in range(len(frames)) if t != ed]
    fixed = torch.from_numpy(np.asarray(frames[ed], np.float32)).to(device)[None, None]
    for first in range(0, len(others), batch_size):
        some = others[first : first + batch_size]
        moving = torch.from_numpy(np.asarray(frames[some], np.float32)).to(device)[:, None]
        with torch.no_grad(), autocast(device, precision):
            flows[some] = model(moving, fixed.expand_as(moving)).float().cpu().numpy()
    return flows


def carried_points(points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(P, 2) points where they have gone: p + flow(p), linear between pixels.

    Args:
        flow: (D, H, W).
    """
    return points + np.stack([map_coordinates(part, points.T, order=1, mode="nearest") for part in flow], 1)


def carried_mask(mask: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(H, W) bool: a mask carried along by its outlines, which are exact to a part of a pixel; holes stay holes."""
    moved = np.zeros(mask.shape, bool)
    for line in outline(mask):
        moved ^= rasterise(carried_points(line, flow), mask.shape)
    return moved


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks; nan where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else float("nan")
