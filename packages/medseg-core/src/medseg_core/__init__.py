"""Files, numbers and the training loop of medseg."""

from medseg_core._version import __version__ as __version__
