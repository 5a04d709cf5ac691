"""Displacements made better for one pair: a few steps of gradient descent on likeness and smoothness, from a network's.

Axes: N pairs, C channels, H W a plane; D the two components of a displacement, along array axes in pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from medseg_cardiac.fields import compose, integrate, roughness, warp
from medseg_cardiac.losses import SIMILARITIES

EDGE = 8  # pixels
KNOTS_PX = (12, 6)  # between the knots of splines: the coarse ones go far in few steps, the fine ones follow a wall
LR_PX = 0.1


@torch.enable_grad()
def refined(
    moving_NCHW: Tensor,
    fixed_NCHW: Tensor,
    flow_NDHW: Tensor,
    *,
    steps: int,
    similarity: str = "ncc",
    smoothness: float = 0.1,
    knots_px: Sequence[int] = KNOTS_PX,
    lr_px: float = LR_PX,
    diffeomorphic: bool = False,
) -> Tensor:
    """The displacement with what `steps` steps add to it, composed; towards the edges it stays as it is.

    What is added is a sum of cubic B-splines on two grids of knots (free-form deformation, Rueckert et al., 1999): they
    keep muscle smooth without holding back how much it thickens, as a heavy penalty for roughness does.

    Args:
        smoothness: weight of the roughness of what is added.
        knots_px: between the knots of each grid.
        lr_px: a step of Adam moves a knot by about as much.
        diffeomorphic: integrates what is added, so that nothing folds that did not before.
    """
    num, _, height, width = flow_NDHW.shape
    like = {"device": flow_NDHW.device, "dtype": flow_NDHW.dtype}
    splines = [(_spline(height, gap).to(**like), _spline(width, gap).to(**like)) for gap in knots_px]
    knots = [torch.zeros(num, 2, a.shape[1], b.shape[1], **like, requires_grad=True) for a, b in splines]
    inside_HW = _fading(flow_NDHW)
    optimizer = torch.optim.Adam(knots, lr=lr_px)

    def added() -> Tensor:
        return sum(down @ at @ across.T for at, (down, across) in zip(knots, splines, strict=True)) * inside_HW

    def whole(more_NDHW: Tensor) -> Tensor:
        return compose(integrate(more_NDHW) if diffeomorphic else more_NDHW, flow_NDHW)

    for _ in range(steps):
        optimizer.zero_grad()
        more_NDHW = added()
        unlike = SIMILARITIES[similarity](warp(moving_NCHW, whole(more_NDHW)), fixed_NCHW)
        loss = unlike.mean() + smoothness * roughness(more_NDHW, power=2)
        (loss * num).backward()
        optimizer.step()
    return whole(added()).detach()


def on_splines(flow_NDHW: Tensor, *, gap: int) -> Tensor:
    """The displacement that is nearest in the mean square among cubic B-splines with a knot every `gap` pixels."""
    down, across = (_spline(size, gap).to(flow_NDHW).double() for size in flow_NDHW.shape[2:])
    flow_NDHW, dtype = flow_NDHW.double(), flow_NDHW.dtype
    return (down @ torch.linalg.pinv(down) @ flow_NDHW @ (across @ torch.linalg.pinv(across)).T).to(dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _spline(size: int, gap: int) -> Tensor:
    """(size, knots): how much each knot counts at each pixel."""
    knots = torch.arange(-1, -(-size // gap) + 2)
    away = (torch.arange(size)[:, None] / gap - knots).abs()
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, near, far)


def _fading(flow_NDHW: Tensor) -> Tensor:
    """(H, W): 1, and falling to 0 over the outermost `EDGE` pixels."""
    ramps = []
    for num in flow_NDHW.shape[2:]:
        at = torch.arange(num, device=flow_NDHW.device)
        ramps.append((torch.minimum(at, num - 1 - at) / EDGE).clamp(max=1))
    return ramps[0][:, None] * ramps[1]
