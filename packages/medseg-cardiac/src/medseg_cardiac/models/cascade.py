"""From two frames to the infarct: a motion net that stays as it is, and the Attention U-Net that reads its answer.

Axes: N slices, H W the two in-plane axes; D the two components of a displacement.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medseg_cardiac.fields import gradient_norm
from medseg_cardiac.models.attention_unet import AttentionUNet
from medseg_cardiac.models.motion import Motion
from medseg_core.checkpoint import freeze
from medseg_core.errors import MedsegError

SEES = ("motion", "ed")


class Cascade(nn.Module):
    """Logits of infarct for each pixel: the frames at end-diastole and end-systole, (N, 1, H, W) each -> (N, K, H, W).

    The U-Net's four channels are the frame at end-diastole, the displacement from there to end-systole along both
    axes, in pixels, and the norm of its gradient; all of them on the grid of end-diastole, where the labels are. One
    weights file holds both networks.

    Args:
        in_channels: 4.
        num_classes: K.
        width: of the U-Net.
        motion: arguments of the motion net.
        refine: steps of `refine.refined` that the displacement had which the U-Net was trained on.
        sees: "motion", or "ed": the same network with zeros for displacement and gradient, which tells what motion
            is worth.

    Raises:
        MedsegError: another number of channels, or another word for `sees`.
    """

    def __init__(
        self,
        in_channels: int = 4,
        num_classes: int = 1,
        *,
        width: int = 64,
        motion: Mapping[str, Any] | None = None,
        refine: int = 0,
        sees: str = "motion",
    ) -> None:
        super().__init__()
        if in_channels != 4 or sees not in SEES:
            raise MedsegError(f"a cascade has 4 channels and sees motion or ed, got {in_channels} and {sees!r}")
        self.sees, self.refine = sees, refine
        self.motion = freeze(Motion(**(motion or {})))
        self.segment = AttentionUNet(in_channels, num_classes, width=width)

    def forward(self, ed_N1HW: Tensor, es_N1HW: Tensor, flow_NDHW: Tensor | None = None) -> Tensor:
        """See the class.

        Args:
            flow_NDHW: (N, 2, H, W) the displacement from end-diastole to end-systole, where it is better known than by
                the motion net alone: see `tracking.systole`, which `refine` is for.
        """
        with torch.no_grad():
            if self.sees == "ed":
                rest_N3HW = torch.zeros_like(ed_N1HW).expand(-1, 3, -1, -1)
            else:
                flow_NDHW = self.motion(es_N1HW, ed_N1HW) if flow_NDHW is None else flow_NDHW
                rest_N3HW = torch.cat([flow_NDHW, gradient_norm(flow_NDHW)], 1)
        return self.segment(torch.cat([ed_N1HW, rest_N3HW.to(ed_N1HW.dtype)], 1))
