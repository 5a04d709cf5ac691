"""The classes of the public whole-heart labels for the CT of ImageCAS (arXiv 2510.06090)."""

from collections.abc import Mapping

WHOLE_HEART: Mapping[int, str] = dict(
    enumerate(("myocardium", "LA", "LV", "RA", "RV", "aorta", "PA", "LAA", "coronary", "PV"), 1)
)
"""id -> name; 0 is background."""
