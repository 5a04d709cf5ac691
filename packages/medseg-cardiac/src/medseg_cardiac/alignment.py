"""LGE brought onto the cine's frame at ED: what the registration net says, made stiff, and refined for the one pair.

Axes: h w the window; D the two components of a displacement, along array axes in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medseg_cardiac.refine import on_splines, refined
from medseg_cardiac.validation import as_picture

KNOTS_PX = (48, 24)  # another breath and beat move a slice, and bend it little
STEPS, LR_PX = 60, 0.2


def aligned(net: nn.Module, lge: np.ndarray, ed: np.ndarray, *, walls: Sequence[np.ndarray] = ()) -> Tensor:
    """(1, D, h, w): where each pixel of the frame at ED is found in the LGE.

    Args:
        net: a registration net.
        lge, ed: (h, w) pictures, 0 to 1.
        walls: the myocardium (h, w) as it is drawn on each, which then counts as much as the pictures do.
    """
    moving, fixed = (as_picture(picture, net) for picture in (lge, ed))
    with torch.no_grad():
        flow = on_splines(net(moving, fixed), gap=KNOTS_PX[0])
    if walls:
        moving, fixed = (torch.cat([x, as_picture(w, net)], 1) for x, w in zip((moving, fixed), walls, strict=True))
    how = {"knots_px": KNOTS_PX, "lr_px": LR_PX, "diffeomorphic": getattr(net, "diffeomorphic", False)}
    return refined(moving, fixed, flow, steps=STEPS, **how)
