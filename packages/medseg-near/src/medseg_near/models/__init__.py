"""The networks by name, as cards write it."""

from medseg_near.models.denoiser import Denoiser
from medseg_near.models.field import Shapes

MODELS = {"shapes": Shapes, "denoiser": Denoiser}
