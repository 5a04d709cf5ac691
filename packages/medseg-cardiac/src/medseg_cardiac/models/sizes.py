"""Pictures of any size for networks that halve: padded before, cropped after."""

from torch import Tensor
from torch.nn import functional as F

from medseg_core.errors import MedsegError


def check_pair(moving_N1HW: Tensor, fixed_N1HW: Tensor) -> None:
    """Two equal batches of pictures of one channel.

    Raises:
        MedsegError: anything else.
    """
    shapes = tuple(moving_N1HW.shape), tuple(fixed_N1HW.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][1] != 1:
        raise MedsegError(f"a pair is two pictures (N, 1, H, W) of one size, got {shapes[0]} and {shapes[1]}")


def padded(x_NCHW: Tensor, stride: int) -> tuple[Tensor, tuple[slice, slice]]:
    """The pictures with H and W multiples of `stride`, their edges repeated, and where the old ones lie in them."""
    missing = [-edge % stride for edge in x_NCHW.shape[2:]]
    (top, bottom), (left, right) = ((gap // 2, gap - gap // 2) for gap in missing)
    crop = tuple(slice(gap // 2, gap // 2 + edge) for gap, edge in zip(missing, x_NCHW.shape[2:], strict=True))
    return F.pad(x_NCHW, (left, right, top, bottom), mode="replicate") if any(missing) else x_NCHW, crop
