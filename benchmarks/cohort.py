"""Ten thousand small cases through `medseg evaluate`: seconds and the memory of the largest process, beside a thousand.

    python benchmarks/cohort.py [--cases 1000 10000] [--workers 2]

Every case is a volume of 24x24x24 voxels with three structures, moved by up to two voxels. A flat memory means that the
cohort may be as large as one likes: what grows is a line of numbers per structure.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg_core.io import write_volume
from medseg_core.volume import Volume

COMMAND = [sys.executable, "-c", "from medseg_core.cli import app; app()", "evaluate"]
WATCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def make(folder: Path, num_cases: int) -> None:
    """`pred` and `ref`, a file a case."""
    label = np.zeros((24, 24, 24), np.uint8)
    label[2:8, 2:10, 2:12], label[10:16, 4:12, 4:12], label[18:22, 10:20, 14:20] = 1, 2, 3
    rng = np.random.default_rng(0)
    for n in range(num_cases):
        moved = np.roll(label, rng.integers(-2, 3, 3), (0, 1, 2))
        write_volume(Volume(label, np.eye(4)), folder / "ref" / f"c{n:05d}.nii.gz")
        write_volume(Volume(moved, np.eye(4)), folder / "pred" / f"c{n:05d}.nii.gz")


def main() -> None:
    """Prints a row per size of cohort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(f"{'cases':>8}{'seconds':>10}{'cases/s':>10}{'peak MB of one process':>25}")
    for num_cases in given.cases:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make(folder, num_cases)
            words = [str(folder / "pred"), str(folder / "ref"), "--out", str(folder / "out")]
            begun = time.perf_counter()
            run = [sys.executable, "-c", WATCH, *COMMAND, *words, "--workers", str(given.workers)]
            told = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            seconds = time.perf_counter() - begun
            peak_mb = int(re.search(r"PEAK (\d+)", told)[1]) / 1024
            print(f"{num_cases:8d}{seconds:10.1f}{num_cases / seconds:10.0f}{peak_mb:25.0f}")


if __name__ == "__main__":
    main()
