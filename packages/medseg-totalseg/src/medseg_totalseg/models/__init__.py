from torch import nn

from medseg_totalseg.models.unet2d import UNet2d

MODELS: dict[str, type[nn.Module]] = {"unet2d": UNet2d}
