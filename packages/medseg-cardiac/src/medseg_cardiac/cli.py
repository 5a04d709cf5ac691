"""`medseg cardiac`: flags, one config, one call each."""

from medseg_core.options import App

app = App("medseg-cardiac", "Cine CMR to motion, registration and infarct.")
