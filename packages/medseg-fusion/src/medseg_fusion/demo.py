"""The whole way on phantom patients: whether fusion helps where neither CT nor PET alone tells what a tumour is.

OUT/data         patients, OUT/cache what `prepare` makes of them
OUT/comparison   networks at equal budget, with report.html
OUT/patients     the first network on patients that it has not seen: report.html, predictions/, panels/
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_core.errors import MedsegError
from medseg_fusion.compare import compare
from medseg_fusion.evaluate import evaluate_run
from medseg_fusion.phantom import phantom
from medseg_fusion.prepare import prepare
from medseg_fusion.settings import CompareConfig, PrepareConfig

NUM_CASES = 12
GRID = PrepareConfig(spacing_mm=(4.0, 4.0, 4.0))
COMPARE = CompareConfig(
    nets=("four_way", "early", "ct", "pet"), folds=2, seeds=(0,), misregistration=False, width=8, epochs=5,
    epoch_slices=256, lr=3e-3, ema=0.95, val_every=5, save_every=0, num_workers=0,
)  # fmt: skip


def demo(out: Path, *, quick: bool = False) -> Mapping[str, Any]:
    """Makes patients, trains four networks on half of them and tests them on the other half, twice.

    Args:
        out: begun where it is not there, gone on with where it is.
        quick: a run of seconds, which shows that everything works and finds nothing.
    """
    begun, out = time.monotonic(), Path(out)
    num_cases, config = NUM_CASES, COMPARE
    if quick:
        num_cases, config = 4, replace(COMPARE, nets=("early", "pet"), width=4, epochs=1, val_every=1, epoch_slices=16)
    phantom(out / "data", num_cases=num_cases)
    if failed := prepare(out / "data", out / "cache", GRID).failed:
        raise MedsegError("; ".join(f"{case}: {why}" for case, why in failed.items()))
    told = compare(out / "cache", out / "comparison", config)
    first = out / "comparison" / "cells" / f"{config.nets[0]}_0_{config.seeds[0]}" / "run"
    evaluate_run(out / "cache", first, out / "patients", split="test", save_predictions=True, overwrite=True)
    verdicts = {f"{row['one']} - {row['other']}": row["verdict"] for row in told["differences"]}
    return {
        "patients": num_cases,
        **{f"dice, {name}": row["mean"] for name, row in told["dice"].items()},
        **{name: verdict for name, verdict in verdicts.items() if name.startswith(config.nets[:2])},
        "comparison": str(out / "comparison" / "report.html"),
        "report": str(out / "patients" / "report.html"),
        "minutes": (time.monotonic() - begun) / 60,
    }
