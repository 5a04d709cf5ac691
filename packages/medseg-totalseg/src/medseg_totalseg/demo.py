"""The whole way on a phantom cohort, from scans to a report."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg_totalseg.evaluate import evaluate_run
from medseg_totalseg.phantom import PHANTOM_LABELS, phantom
from medseg_totalseg.settings import EvaluateConfig, TotalsegConfig
from medseg_totalseg.train import train


def demo(out: Path, *, quick: bool = False) -> Mapping[str, Any]:
    """Makes scans, trains on them, predicts scans it has not seen, and scores them in `out/report.html`.

    Args:
        out: begun where it is not there, gone on with where it is.
        quick: a run of seconds, which shows that everything works and scores badly.
    """
    begun = time.monotonic()
    data = phantom(out / "data", num_cases=4 if quick else 8)
    config = TotalsegConfig(
        epochs=2 if quick else 12,
        size=64,
        widths=(8, 16, 32) if quick else (16, 32, 64, 128),
        structures=tuple(PHANTOM_LABELS.values()),
    )
    train(data, out / "run", config, resume="last")
    evaluation, _ = evaluate_run(data, [out / "run"], out, EvaluateConfig(), overwrite=True)
    return {**evaluation.headline(), "report": str(out / "report.html"), "minutes": (time.monotonic() - begun) / 60}
