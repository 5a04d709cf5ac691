"""Networks by the names that stand in cards."""

from torch import nn

from medseg_cardiac.models.attention_unet import AttentionUNet
from medseg_cardiac.models.cascade import Cascade
from medseg_cardiac.models.motion import Motion
from medseg_cardiac.models.registration import Registration

MODELS: dict[str, type[nn.Module]] = {
    "motion": Motion,
    "registration": Registration,
    "attention-unet": AttentionUNet,
    "cascade": Cascade,
}
