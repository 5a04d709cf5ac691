"""What every network does with the two pictures first: check, blank what is missing, pad.

Axes: N slices, H W rows and columns; the two channels and the two columns of `present_N2` are CT and PET.
"""

from torch import Tensor
from torch.nn import functional as F

from medseg_core.errors import MedsegError

MODALITIES = ("ct", "pet")
STRIDE = 16
LEAST = 32  # 4 x 4 pixels at 1/8, 2 x 2 at 1/16: an instance norm of a single pixel is undefined


def check_arguments(in_channels: int, num_classes: int, width: int) -> None:
    """Two channels, at least one class, at least one channel of width.

    Raises:
        MedsegError: anything else.
    """
    if in_channels != len(MODALITIES):
        raise MedsegError(f"in_channels is {in_channels}; it must be 2, CT and PET; 'single' uses one of them")
    if min(num_classes, width) < 1:
        raise MedsegError(f"num_classes {num_classes}, width {width}: both must be at least 1")


def entered(x_N2HW: Tensor, present_N2: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The pictures with every missing one set to 0, and (N, 2) booleans that say which are there; None means all.

    Raises:
        MedsegError: not (N, 2, H, W), an empty picture, or `present_N2` of another shape than (N, 2).
    """
    if x_N2HW.ndim != 4 or x_N2HW.shape[1] != 2 or 0 in x_N2HW.shape:
        raise MedsegError(f"the input is {tuple(x_N2HW.shape)}; it must be (N, 2, H, W), the channels CT and PET")
    if present_N2 is None:
        return x_N2HW, None
    if tuple(present_N2.shape) != (len(x_N2HW), 2):
        shapes = f"{tuple(present_N2.shape)} for {len(x_N2HW)} slices"
        raise MedsegError(f"present is {shapes}; it must be (N, 2), 1 where CT and PET are there")
    there_N2 = present_N2 != 0
    return x_N2HW.masked_fill(~there_N2[:, :, None, None], 0), there_N2


def gated(x_NChw: Tensor, there_N2: Tensor | None, modality: int) -> Tensor:
    """Features of the stream of one modality, 0 for the slices that lack it; NaN becomes 0 too."""
    return x_NChw if there_N2 is None else x_NChw.masked_fill(~there_N2[:, modality, None, None, None], 0)


def padded(x_NCHW: Tensor) -> tuple[Tensor, tuple[slice, slice]]:
    """H and W made multiples of `STRIDE` and at least `LEAST`, and where the pictures lie in the result.

    An axis is reflected where it is longer than what is to be added on a side; else its edge is repeated.
    """
    edges = x_NCHW.shape[2:]
    gaps = [max(LEAST - edge, -edge % STRIDE) for edge in edges]
    crop = tuple(slice(gap // 2, gap // 2 + edge) for gap, edge in zip(gaps, edges, strict=True))
    for axis, (gap, edge) in enumerate(zip(gaps, edges, strict=True)):
        if gap:
            ends = (gap // 2, gap - gap // 2)
            mode = "reflect" if ends[1] < edge else "replicate"
            x_NCHW = F.pad(x_NCHW, (0, 0, *ends) if axis == 0 else (*ends, 0, 0), mode=mode)
    return x_NCHW, crop
