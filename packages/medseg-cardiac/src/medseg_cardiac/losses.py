"""How alike two pictures are, one value per pixel, for displacements that are learnt without labels.

Axes: N pairs, H W the two in-plane axes.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

EDGE = 9  # of the neighbourhood of local correlation (Balakrishnan et al., 2019)
QUIET = 1e-3  # variance below which a neighbourhood says nothing: noise of 3 % of the range
SOFT = 1e-2  # from where on Charbonnier's penalty is linear


def absolute(one_N1HW: Tensor, other_N1HW: Tensor) -> Tensor:
    """The difference, without its sign."""
    return (one_N1HW - other_N1HW).abs()


def charbonnier(one_N1HW: Tensor, other_N1HW: Tensor) -> Tensor:
    """The difference, rounded near 0: sqrt(d^2 + e^2) - e (Charbonnier et al., 1994)."""
    return ((one_N1HW - other_N1HW).square() + SOFT**2).sqrt() - SOFT


def local_ncc(one_N1HW: Tensor, other_N1HW: Tensor) -> Tensor:
    """One minus the squared correlation of the 9 x 9 pixels around each one; 1 where either is flat.

    It does not change when grey values are scaled or shifted, so it compares pictures of other contrast too.
    """
    one, other = one_N1HW.float(), other_N1HW.float()
    with torch.autocast(one.device.type, enabled=False):  # variances are differences of means: 16 bits lose them
        mean_one, mean_other = _mean(one), _mean(other)
        var_one = (_mean(one * one) - mean_one.square()).clamp(min=0)
        var_other = (_mean(other * other) - mean_other.square()).clamp(min=0)
        both = _mean(one * other) - mean_one * mean_other
    return 1 - both.square() / ((var_one + QUIET) * (var_other + QUIET))


def _mean(x_N1HW: Tensor) -> Tensor:
    """Over the neighbourhood, of which beyond the edge nothing counts; as a product, which is faster than pooling."""
    down, across = (_band(size, x_N1HW.device) for size in x_N1HW.shape[2:])
    return down @ x_N1HW @ across.T


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _band(size: int, device: torch.device) -> Tensor:
    """(size, size): rows that average the `EDGE` entries about the diagonal."""
    at = torch.arange(size, device=device)
    near = ((at[:, None] - at).abs() <= EDGE // 2).float()
    return near / near.sum(1, keepdim=True)


SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": absolute,
    "charbonnier": charbonnier,
    "ncc": local_ncc,
}


def mean_over(values_N1HW: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of each case, then over cases; 0 for a case without weight.

    Args:
        weight: (N, 1, H, W) or (1, 1, H, W).
    """
    weight = weight.expand_as(values_N1HW)
    return ((values_N1HW * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1e-6)).mean()


def near_middle(size: int, *, reach: float, device: torch.device) -> Tensor:
    """(1, 1, size, size): 1 in the middle, where the heart is, and falling like a Gaussian of `reach` pixels."""
    at = torch.arange(size, device=device) - (size - 1) / 2
    bell = torch.exp(-at.square() / (2 * reach**2))
    return (bell[:, None] * bell)[None, None]
