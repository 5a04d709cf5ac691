"""Networks by the names that stand in cards."""

from torch import nn

from medseg_fusion.models.baselines import V1, EarlyConcat, Single
from medseg_fusion.models.dual_unet import FourWay

MODELS: dict[str, type[nn.Module]] = {"four_way": FourWay, "early": EarlyConcat, "single": Single, "v1": V1}
