"""Displacements made better for one pair: a few steps of gradient descent on likeness and smoothness, from a network's.

Axes: N pairs, H W a plane; D the two components of a displacement, along array axes in pixels.
"""

import torch
from torch import Tensor

from medseg_cardiac.fields import compose, integrate, roughness, smooth, warp
from medseg_cardiac.losses import SIMILARITIES

EDGE = 8  # pixels
LR_PX = 0.1  # a step of Adam moves a pixel by about as much


def refined(
    moving_N1HW: Tensor,
    fixed_N1HW: Tensor,
    flow_NDHW: Tensor,
    *,
    steps: int,
    similarity: str = "ncc",
    smoothness: float = 0.7,
    diffeomorphic: bool = False,
) -> Tensor:
    """The displacement with what `steps` steps add to it, composed; towards the edges it stays as it is.

    Args:
        smoothness: weight of the roughness of what is added.
        diffeomorphic: integrates what is added, so that nothing folds that did not before.
    """
    more_NDHW = torch.zeros_like(flow_NDHW, requires_grad=True)
    inside = _fading(flow_NDHW)
    optimizer = torch.optim.Adam([more_NDHW], lr=LR_PX)
    for _ in range(steps):
        optimizer.zero_grad()
        whole_NDHW = _composed(more_NDHW * inside, flow_NDHW, diffeomorphic=diffeomorphic)
        unlike = SIMILARITIES[similarity](warp(moving_N1HW, whole_NDHW), fixed_N1HW)
        loss = unlike.mean() + smoothness * roughness(smooth(more_NDHW), power=2)
        (loss * len(flow_NDHW)).backward()
        optimizer.step()
    with torch.no_grad():
        return _composed(more_NDHW * inside, flow_NDHW, diffeomorphic=diffeomorphic)


def _fading(flow_NDHW: Tensor) -> Tensor:
    """(H, W): 1, and falling to 0 over the outermost `EDGE` pixels."""
    ramps = []
    for num in flow_NDHW.shape[2:]:
        at = torch.arange(num, device=flow_NDHW.device)
        ramps.append((torch.minimum(at, num - 1 - at) / EDGE).clamp(max=1))
    return ramps[0][:, None] * ramps[1]


def _composed(more_NDHW: Tensor, flow_NDHW: Tensor, *, diffeomorphic: bool) -> Tensor:
    more_NDHW = smooth(more_NDHW)
    return compose(integrate(more_NDHW) if diffeomorphic else more_NDHW, flow_NDHW)
