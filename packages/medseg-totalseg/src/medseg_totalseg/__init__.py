"""117 CT structures: prepare, train, predict, evaluate, look."""

from medseg_totalseg._version import __version__ as __version__
