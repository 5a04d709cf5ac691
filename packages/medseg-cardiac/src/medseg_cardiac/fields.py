"""Displacements of slices: warping, composing, integrating, folds, and strain.

Axes: N slices, C channels, H W the two in-plane axes; D the two components of a displacement. Component i moves along
array axis i, in pixels; a displacement lives on the grid of the picture that stays, and says where in the other one
each of its pixels is found.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 7  # halvings of a velocity: 1/128 of it moves less than a pixel (Dalca et al., 2018)


def warp(picture_NCHW: Tensor, flow_NDHW: Tensor) -> Tensor:
    """The picture at x + flow(x), (N, C, H, W) in float32 or better; beyond its edges their values hold."""
    picture_NCHW = picture_NCHW.to(torch.promote_types(picture_NCHW.dtype, torch.float32))
    at_NDHW = _places(flow_NDHW.to(picture_NCHW.dtype))
    ends = torch.tensor(flow_NDHW.shape[2:], device=at_NDHW.device).reshape(1, 2, 1, 1) - 1
    share_NHWD = (2 * at_NDHW / ends.clamp(min=1) - 1).flip(1).permute(0, 2, 3, 1)  # columns first, as PyTorch wants
    with torch.autocast(picture_NCHW.device.type, enabled=False):
        return F.grid_sample(picture_NCHW, share_NHWD, padding_mode="border", align_corners=True)


def compose(first_NDHW: Tensor, then_NDHW: Tensor) -> Tensor:
    """The displacement of going `first` and from there `then`: x -> x + first(x) + then(x + first(x))."""
    return first_NDHW + warp(then_NDHW, first_NDHW)


def integrate(velocity_NDHW: Tensor, *, steps: int = STEPS) -> Tensor:
    """The displacement after unit time in a velocity that stands still (scaling and squaring, Arsigny et al., 2006).

    `integrate(-velocity)` is its inverse.
    """
    flow_NDHW = velocity_NDHW / 2**steps
    for _ in range(steps):
        flow_NDHW = compose(flow_NDHW, flow_NDHW)
    return flow_NDHW


def smooth(flow_NDHW: Tensor, *, sigma: float = 1.0) -> Tensor:
    """A Gaussian of `sigma` pixels over each component; beyond the edges their values hold."""
    reach = math.ceil(3 * sigma)
    n, d, h, w = flow_NDHW.shape
    at = torch.arange(-reach, reach + 1, device=flow_NDHW.device, dtype=flow_NDHW.dtype)
    kernel = torch.softmax(-at.square() / (2 * sigma**2), 0).reshape(1, 1, -1, 1)
    wide = F.pad(flow_NDHW.reshape(n * d, 1, h, w), (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel), kernel.transpose(2, 3)).reshape(n, d, h, w)


def jacobian(flow_NDHW: Tensor) -> Tensor:
    """The deformation gradient F of x -> x + flow(x), in pixels: (N, 2, 2, H, W), component i along axis j.

    Central differences, one-sided at the edges.
    """
    slopes = torch.stack(torch.gradient(flow_NDHW, dim=(2, 3)), 2)
    return slopes + torch.eye(2, device=slopes.device, dtype=slopes.dtype).reshape(1, 2, 2, 1, 1)


def num_folds(flow_NDHW: Tensor) -> Tensor:
    """(N,) how many cells of the grid are turned over: a corner of the moved cell has an area of 0 or less.

    A cell has four corners, whose areas are those of forward and backward differences: a fold that central differences
    step over is seen.
    """
    at_NDHW = _places(flow_NDHW)
    down, right = at_NDHW.diff(dim=2), at_NDHW.diff(dim=3)
    turned = torch.zeros_like(down[:, 0, :, 1:], dtype=torch.bool)
    for d_NDhw in (down[..., :-1], down[..., 1:]):
        for r_NDhw in (right[:, :, :-1], right[:, :, 1:]):
            turned |= d_NDhw[:, 0] * r_NDhw[:, 1] - d_NDhw[:, 1] * r_NDhw[:, 0] <= 0
    return turned.flatten(1).sum(1)


def gradient_norm(flow_NDHW: Tensor) -> Tensor:
    """The Frobenius norm of the displacement's gradient, (N, 1, H, W), by forward differences with zeros at the end.

    This is the strain map of the original: it has no unit, and also sees rotation. Strain is `green_lagrange`.
    """
    down = F.pad(flow_NDHW.diff(dim=2), (0, 0, 0, 1))
    right = F.pad(flow_NDHW.diff(dim=3), (0, 1))
    return (down.square() + right.square()).sum(1, keepdim=True).clamp(min=1e-12).sqrt()


def roughness(flow_NDHW: Tensor, *, power: int = 1) -> Tensor:
    """The mean of |differences| ** power along both axes, added up: a scalar."""
    return flow_NDHW.diff(dim=2).abs().pow(power).mean() + flow_NDHW.diff(dim=3).abs().pow(power).mean()


def green_lagrange(flow_NDHW: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Strain (F^T F - 1) / 2 on the grid where the displacement lives: (N, 2, 2, H, W), in mm per mm.

    Args:
        spacing_mm: along H and W; pixels need not be square.
    """
    size = torch.tensor(spacing_mm, device=flow_NDHW.device, dtype=flow_NDHW.dtype)
    gradient = jacobian(flow_NDHW) * (size.reshape(2, 1) / size.reshape(1, 2))[None, :, :, None, None]
    both = torch.einsum("nkihw,nkjhw->nijhw", gradient, gradient)
    return (both - torch.eye(2, device=both.device, dtype=both.dtype).reshape(1, 2, 2, 1, 1)) / 2


def radial_circumferential(
    strain_N22HW: Tensor, centre: Sequence[float], spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The strain along the ray from the centre of the left ventricle and across it, (N, H, W) each.

    Args:
        centre: (h, w) in pixels.
        spacing_mm: along H and W.
    """
    h, w = (torch.arange(n, device=strain_N22HW.device, dtype=strain_N22HW.dtype) for n in strain_N22HW.shape[3:])
    ray = torch.stack(torch.meshgrid((h - centre[0]) * spacing_mm[0], (w - centre[1]) * spacing_mm[1], indexing="ij"))
    ray = ray / ray.norm(dim=0).clamp(min=1e-6)
    across = torch.stack([-ray[1], ray[0]])
    return tuple(torch.einsum("ihw,nijhw,jhw->nhw", d, strain_N22HW, d) for d in (ray, across))  # type: ignore[return-value]


def _places(flow_NDHW: Tensor) -> Tensor:
    """x + flow(x)."""
    axes = (torch.arange(n, device=flow_NDHW.device, dtype=flow_NDHW.dtype) for n in flow_NDHW.shape[2:])
    return torch.stack(torch.meshgrid(*axes, indexing="ij")) + flow_NDHW
