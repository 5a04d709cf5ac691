"""Cine CMR to motion, registration and infarct."""

from medseg_cardiac._version import __version__ as __version__
