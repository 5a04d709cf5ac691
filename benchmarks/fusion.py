"""Whether fusion helps on real patients: four networks and plain thresholds of SUV, cross-validated by patient.

    python benchmarks/fusion.py --out fusion               # hours on two cores; goes on where it was
    python benchmarks/fusion.py --out small --small        # does it run at all?
    python benchmarks/fusion.py --out missing --missing    # one network for both modalities or either: what it costs

The protocol, fixed before the first run. 19 patients with sarcoma (CT, PET in SUV, tumour), on 3 x 3 x 3.27 mm. Five
folds by patient, drawn once; each patient is tested once by each of two seeds. Of those that are not tested a fifth
choose epoch and threshold, the others are trained on. Every network gets 8 epochs of 512 slices of 64 x 64, half of
them with tumour, in batches of 8; AdamW from 3e-3 down by a cosine, EMA 0.98, half Dice and half cross entropy, width
8, VGG random. These were chosen with early concatenation, on validation patients of one split; so was the layer norm,
for all: it gave PET alone Dice 0.72 where an instance norm gave 0.53, CT alone 0.52 and 0.49, early 0.77 with both,
four way 0.76 and 0.74 (the best `val_dice` in cells/<net>_0_0/run/metrics.jsonl, with `norm` of PROTOCOL either way).
The measure is Dice over a whole patient, averaged over the seeds; intervals are over patients. The thresholds of SUV
are scored on the same patients and grid, the best one per patient with the truth in hand.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import torch

from medseg_core.io import write_text
from medseg_fusion.compare import compare
from medseg_fusion.prepare import prepare
from medseg_fusion.settings import CompareConfig, PrepareConfig

DATA = "ctpet"
GRID = PrepareConfig(spacing_mm=(3.0, 3.0, 3.27))
PROTOCOL = CompareConfig(
    nets=("four_way", "early", "ct", "pet"), folds=5, seeds=(0, 1), width=8, size=64, epochs=8, epoch_slices=512,
    lr=3e-3, ema=0.98, val_every=2, num_workers=0, device="cpu",
)  # fmt: skip
SMALL = {"nets": ("early", "pet"), "folds": 2, "seeds": (0,), "epochs": 2, "epoch_slices": 128}
MISSING = {"nets": ("four_way", "early"), "seeds": (0,), "drop_chance": 0.2, "misregistration": False}


def main() -> None:
    """Trains and scores what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--small", action="store_true")
    which.add_argument("--missing", action="store_true")
    options = parser.parse_args()
    config = replace(PROTOCOL, **(SMALL if options.small else MISSING if options.missing else {}))
    cache = options.out / "cache"
    prepare(Path(os.environ["MEDSEG_TEST_DATA"]) / DATA, cache, GRID)
    told = compare(cache, options.out / "comparison", config)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    document = {"command": " ".join(sys.argv), "machine": machine, **told}
    write_text(options.out / "results.json", json.dumps(document, indent=1) + "\n")
    for name, row in told["dice"].items():
        print(f"{name:32} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['n']:.0f} patients")
    for row in told["differences"]:
        ends = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['one']} - {row['other']}: {ends} {row['verdict']}")


if __name__ == "__main__":
    main()
