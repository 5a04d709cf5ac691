"""Networks by the names that stand in cards."""

from torch import nn

from medseg_sem_al.models.original import SixLevels
from medseg_sem_al.models.pretraining import METHODS
from medseg_sem_al.models.segmenter import Segmenter

MODELS: dict[str, type[nn.Module]] = {"segmenter": Segmenter, "six_levels": SixLevels, **METHODS}
