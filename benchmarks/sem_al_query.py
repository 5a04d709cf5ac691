"""How fast it is known what to ask for, and in how much memory.

    python benchmarks/sem_al_query.py                 # minutes
    python benchmarks/sem_al_query.py --small         # does it run at all?
    hatch run baal:python benchmarks/sem_al_query.py  # beside baal, in an environment of its own

Measures: entropy, confidence and margin of 1000 pictures of 512 x 512 pixels and 3 classes, twenty at a time, against
NumPy and SciPy as baal writes it, and baal itself (three heuristics with reduction "mean") where it is installed;
median of the batches' ratios. k-centre: 200 picks of 10,000 x 512 features, against the incremental loop in NumPy, by
differences and by BLAS; features without any structure, and in 50 clusters. Memory: 20 picks of 100,000 units of 256
features by every strategy, in a process of its own that holds nothing else; peak resident size (Linux).
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import entropy as shannon

from medseg_sem_al.diversity import k_centre
from medseg_sem_al.settings import QueryConfig
from medseg_sem_al.strategies import Units, choose, plan_of
from medseg_sem_al.uncertainty import at_once

STRATEGIES = ("combined", "hybrid", "core-set", "cluster", "clasp", "class-random", "entropy")
BATCH, EDGE, CLASSES = 20, 512, 3


def main() -> None:
    """Prints a line for each comparison, and writes them all where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(chosen_of(options.memory_of)))
        return
    scale = 20 if options.small else 1
    rows = [*measures(1000 // scale), *centres(10_000 // scale, 200 // scale), *memory(100_000 // scale)]
    for row in rows:
        print(
            "  ".join(f"{name} {value:.3g}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    if options.json:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        document = {"command": " ".join(sys.argv), "machine": machine, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def measures(num: int) -> list[dict[str, Any]]:
    """Seconds for all pictures, and how many times as long others take."""
    others: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {"NumPy": by_numpy}
    if importlib.util.find_spec("baal"):
        others["baal"] = by_baal()
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (BATCH, CLASSES, EDGE, EDGE)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in ("here", *others)}
    for number in range(num // BATCH + 1):
        probs = np.exp(np.roll(logits, number, 2))
        probs /= probs.sum(1, keepdims=True)
        start = time.perf_counter()
        here = at_once(probs).mean((2, 3), dtype=np.float64)
        took = {"here": time.perf_counter() - start}
        for name, other in others.items():
            start = time.perf_counter()
            found = other(probs)
            took[name] = time.perf_counter() - start
            assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(here, found, strict=True)), name
        if number:  # the first one compiles
            for name, seconds in took.items():
                times[name].append(seconds)
    rows = [{"what": f"measures of {num} pictures", "seconds": sum(times["here"])}]
    for name in others:
        ratios = [b / a for a, b in zip(times["here"], times[name], strict=True)]
        rows.append({"what": f"measures, {name}", "times as long": statistics.median(ratios)})
    return rows


def by_numpy(probs_NKHW: np.ndarray) -> list[np.ndarray]:
    """(N,) of each measure."""
    ranked = np.sort(probs_NKHW, axis=1)
    maps = (
        shannon(probs_NKHW, axis=1) / np.log(CLASSES),
        1 - ranked[:, -1],
        1 - (ranked[:, -1] - ranked[:, -2]),
    )
    return [values.mean((1, 2)) for values in maps]


def by_baal() -> Callable[[np.ndarray], list[np.ndarray]]:
    """The same from its heuristics, turned to our signs and scale."""
    peer = importlib.import_module("baal.active.heuristics")
    asked = [getattr(peer, name)(reduction="mean") for name in ("Entropy", "Certainty", "Margin")]

    def scored(probs_NKHW: np.ndarray) -> list[np.ndarray]:
        # its last axis is that of the passes
        shannon_N, certainty_N, margin_N = (one.get_uncertainties(probs_NKHW[..., None]) for one in asked)
        return [shannon_N / np.log(CLASSES), 1 - certainty_N, 1 - margin_N]

    return scored


def centres(num: int, picks: int) -> list[dict[str, Any]]:
    """Seconds, and how many times as long the loops take."""
    rng = np.random.default_rng(0)
    even = rng.normal(size=(num, 512)).astype(np.float32)
    clusters = (rng.normal(0, 3, (50, 512))[rng.integers(50, size=num)] + rng.normal(size=(num, 512))).astype(
        np.float32
    )
    k_centre(even[:100], 2)  # compiles
    rows = []
    for name, features in (("without structure", even), ("in clusters", clusters)):
        took: dict[str, list[float]] = {"here": [], "differences": [], "BLAS": []}
        for _ in range(5):
            found = {}
            for method, function in (("here", k_centre), ("differences", by_differences), ("BLAS", by_blas)):
                start = time.perf_counter()
                found[method] = function(features, picks)
                took[method].append(time.perf_counter() - start)
        row: dict[str, Any] = {"what": f"k-centre, {name}", "seconds": statistics.median(took["here"])}
        for method in ("differences", "BLAS"):
            ratios = [b / a for a, b in zip(took["here"], took[method], strict=True)]
            row |= {f"{method}: times as long": statistics.median(ratios)}
            row |= {f"{method}: same picks": bool(np.array_equal(found[method], found["here"]))}
        rows.append(row)
    return rows


def by_differences(features_NF: np.ndarray, picks: int) -> np.ndarray:
    """The incremental loop: distances to the newest centre alone."""
    return _greedy(features_NF, picks, lambda centre_F: np.square(features_NF - centre_F).sum(1))


def by_blas(features_NF: np.ndarray, picks: int) -> np.ndarray:
    """The same with |x|^2 - 2 x c + |c|^2."""
    squares_N = np.square(features_NF).sum(1)
    return _greedy(features_NF, picks, lambda centre_F: squares_N - 2 * (features_NF @ centre_F) + centre_F @ centre_F)


def _greedy(features_NF: np.ndarray, picks: int, gaps_to: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    picked = [int(np.square(features_NF - features_NF.mean(0)).sum(1).argmax())]
    gaps_N = gaps_to(features_NF[picked[0]])
    for _ in range(picks - 1):
        picked.append(int(gaps_N.argmax()))
        gaps_N = np.minimum(gaps_N, gaps_to(features_NF[picked[-1]]))
    return np.array(picked)


def memory(num: int) -> list[dict[str, Any]]:
    """Peak resident size and seconds of a choice from so many units."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "features.npy"
        features = np.lib.format.open_memmap(file, "w+", np.float32, (num, 256))
        rng = np.random.default_rng(0)
        for start in range(0, num, 1000):
            features[start : start + 1000] = rng.normal(size=features[start : start + 1000].shape)
        features.flush()
        told = subprocess.run(
            [sys.executable, __file__, "--memory-of", str(file)], check=True, capture_output=True, text=True
        )
    return [{"what": f"20 of {num} units", **row} for row in json.loads(told.stdout)]


def chosen_of(file: Path) -> list[dict[str, Any]]:
    """Chooses by every strategy; the peak is that of all up to here."""
    features = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    num, rng = len(features), np.random.default_rng(0)
    unsure = rng.random((num, CLASSES), np.float32)
    shares = unsure / unsure.sum(1, keepdims=True)
    scores = dict.fromkeys(("entropy", "confidence", "margin"), rng.random(num))
    units, rows = Units(scores, shares, unsure, np.array(features), np.array(features[:20])), []
    for name in STRATEGIES:
        start = time.perf_counter()
        picks = choose(units, 20, plan_of(replace(QueryConfig(), strategy=name)), rng)
        took = time.perf_counter() - start
        rows.append({"strategy": name, "picks": len(picks), "seconds": took, "peak GB": peak_gb()})
    return rows


def peak_gb() -> float:
    """Of this program; `getrusage` counts what forked it too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
