"""The networks by name, as cards write it."""

from medseg_near.models.field import Shapes

MODELS = {"shapes": Shapes}
