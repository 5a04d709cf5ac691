"""Tumours on CT and PET: two encoders, and the proof whether their fusion helps."""

from medseg_fusion._version import __version__ as __version__
