"""Points and masks carried along by a displacement, and the displacement of every frame of a cycle.

Axes: T frames, H W a plane, P points (h, w) in pixels; D the two components of a displacement, of which component i
moves along array axis i. A displacement lives on the plane whose points it carries.
"""

from typing import Any

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from medseg_cardiac.contours import outline, rasterise
from medseg_cardiac.refine import refined
from medseg_core.device import autocast

MARGIN = 12  # pixels about the myocardium: more than it moves


def cycle(
    model: nn.Module,
    frames: np.ndarray,
    ed: int,
    *,
    precision: str = "fp32",
    refine: int = 0,
    myo: np.ndarray | None = None,
    batch_size: int = 8,
) -> np.ndarray:
    """(T, D, H, W) float32: where each pixel of the frame at ED is found in every frame; 0 at ED itself.

    Args:
        model: a motion net.
        frames: (T, H, W) float32, 0 to 1.
        refine: steps of `refine.refined` on each frame, about the myocardium.
        myo: (H, W) bool at ED; without it the whole plane is refined.
    """
    box = _box_about(myo) if myo is not None and myo.any() else (slice(None), slice(None))
    device = next(model.parameters()).device
    flows = np.zeros((len(frames), 2, *frames.shape[1:]), np.float32)
    others = [t for t in range(len(frames)) if t != ed]
    fixed = torch.from_numpy(np.asarray(frames[ed], np.float32)).to(device)[None, None]
    for first in range(0, len(others), batch_size):
        some = others[first : first + batch_size]
        moving = torch.from_numpy(np.asarray(frames[some], np.float32)).to(device)[:, None]
        with torch.no_grad(), autocast(device, precision):
            flow = model(moving, fixed.expand_as(moving)).float()
        if refine:
            parts = moving[..., *box], fixed.expand_as(moving)[..., *box], flow[..., *box]
            flow[..., *box] = refined(*parts, steps=refine, diffeomorphic=getattr(model, "diffeomorphic", False))
        flows[some] = flow.cpu().numpy()
    return flows


def systole(model: nn.Module, frames: np.ndarray, *, ed: int, es: int, **how: Any) -> np.ndarray:
    """(D, H, W): `cycle` of the frames at ED and ES alone."""
    return cycle(model, frames[[ed, es]], 0, **how)[1]


def _box_about(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold a mask, and `MARGIN` pixels more."""
    ends = [np.flatnonzero(mask.any(1 - axis))[[0, -1]] for axis in (0, 1)]
    rows, columns = (slice(max(0, int(low) - MARGIN), int(high) + MARGIN + 1) for low, high in ends)
    return rows, columns


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
