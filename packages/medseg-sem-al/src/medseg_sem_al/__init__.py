"""SEM segmentation from few labels."""

from medseg_sem_al._version import __version__ as __version__
