"""Noisy 3D labels repaired by an implicit shape model."""

from medseg_near._version import __version__ as __version__
