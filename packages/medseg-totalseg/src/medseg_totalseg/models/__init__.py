from torch import nn

from medseg_totalseg.models.unet2d import UNet2d
from medseg_totalseg.models.unet2d_attention import AttentionUNet2d
from medseg_totalseg.models.unet3d import UNet3d

MODELS: dict[str, type[nn.Module]] = {"unet2d": UNet2d, "unet2d-attention": AttentionUNet2d, "unet3d": UNet3d}
