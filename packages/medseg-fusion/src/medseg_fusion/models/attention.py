"""Channel attention (Fu et al., DANet, 2019), with convolutions before it.

Axes: N slices, C channels, h w rows and columns of a level, P = h * w pixels.
"""

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Each channel gets a mixture of all channels, the least similar ones weighed most: (N, C, h, w) -> the same.

    With q, k, v three 3x3 convolutions of the input: E = q k^T over the pixels, A = softmax(rowmax(E) - E), and the
    result is gamma * A v + v. gamma is one number and starts at 0. 3 (9 C^2 + C) + 1 parameters.

    Args:
        channels: C.
        scaled: divides E by P, so that A is the same for pictures of any size. Without it E grows with the picture and
            A picks one channel per row, which is for weights that were trained so. sqrt(P), as in other attention,
            would not do: channels of one picture go together, so their sums grow with P.
    """

    def __init__(self, channels: int, *, scaled: bool = True) -> None:
        super().__init__()
        self.scaled = scaled
        self.query = nn.Conv2d(channels, channels, 3, padding=1)
        self.key = nn.Conv2d(channels, channels, 3, padding=1)
        self.value = nn.Conv2d(channels, channels, 3, padding=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x_NChw: Tensor) -> Tensor:
        """See the class."""
        v_NChw = self.value(x_NChw)
        mixed_NCP = self.weights(x_NChw).to(v_NChw.dtype) @ v_NChw.flatten(2)
        return self.gamma * mixed_NCP.view_as(v_NChw) + v_NChw

    def weights(self, x_NChw: Tensor) -> Tensor:
        """A, (N, C, C), in at least float32 also under autocast; each row adds up to 1."""
        q_NCP, k_NCP = self.query(x_NChw).flatten(2), self.key(x_NChw).flatten(2)
        dtype = torch.promote_types(q_NCP.dtype, torch.float32)
        with torch.autocast(x_NChw.device.type, enabled=False):
            energy_NCC = q_NCP.to(dtype) @ k_NCP.to(dtype).mT
            if self.scaled:
                energy_NCC = energy_NCC / q_NCP.shape[-1]
            return torch.softmax(energy_NCC.amax(-1, keepdim=True) - energy_NCC, -1)
