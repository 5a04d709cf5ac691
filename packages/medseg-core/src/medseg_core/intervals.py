"""Means over cases with bootstrap intervals, and paired comparisons: patients are drawn, never rows.

The structures of one patient are not independent, so a case's values are averaged first and every case counts the same.
Intervals are the 2.5th and 97.5th percentile of the means of 2000 draws of the cases with replacement (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993), and nan below two cases.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

NUM_RESAMPLES = 2000

Key = tuple[str, str]


def resampled(num_cases: int, *, seed: int) -> np.ndarray:
    """(2000, num_cases) float64: how often each case comes in each draw with replacement."""
    rng = np.random.default_rng([seed, 0, 0, 0])
    return rng.multinomial(num_cases, np.full(num_cases, 1 / max(num_cases, 1)), size=NUM_RESAMPLES).astype(float)


def interval(per_case: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Low and high end for the mean of `per_case` (N,), nan where a case has no value; `weights` from `resampled`."""
    there = np.isfinite(per_case)
    if there.sum() < 2:
        return math.nan, math.nan
    drawn = weights @ there
    means = (weights @ np.where(there, per_case, 0.0))[drawn > 0] / drawn[drawn > 0]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def values_of(rows: Iterable[Mapping[str, Any]], measure: str) -> dict[Key, float]:
    """(case, structure) -> value, for the rows in which the measure is defined."""
    return {(row["case"], row["name"]): row[measure] for row in rows if math.isfinite(row.get(measure, math.nan))}


def case_means(values: Mapping[Key, float]) -> dict[str, float]:
    """Case -> mean over its structures."""
    per_case: dict[str, list[float]] = {}
    for (case, _), value in values.items():
        per_case.setdefault(case, []).append(value)
    return {case: float(np.mean(found)) for case, found in per_case.items()}


def summarise(
    rows: Sequence[Mapping[str, Any]], measure: str, *, cases: Sequence[str], weights: np.ndarray
) -> dict[str, float]:
    """Mean, standard deviation (n - 1) and interval over cases, and how many values stand behind them.

    Args:
        rows: `case, name, status` and measures.
        cases: all cases of the cohort, in the order of the columns of `weights`.
        weights: from `resampled`, the same for everything that is to be compared.
    """
    values = values_of(rows, measure)
    per_case = case_means(values)
    means = np.array([per_case.get(case, math.nan) for case in cases])
    there = means[np.isfinite(means)]
    low, high = interval(means, weights)
    return {
        "mean": float(there.mean()) if len(there) else math.nan,
        "std": float(there.std(ddof=1)) if len(there) > 1 else math.nan,
        "low": low,
        "high": high,
        "n": len(values),
        "n_cases": len(there),
        **{f"n_{status}": sum(row["status"] == status for row in rows) for status in ("missed", "invented")},
    }


def compare(mine: Mapping[Key, float], theirs: Mapping[Key, float], *, seed: int = 0) -> dict[str, float]:
    """Mine minus theirs over the (case, structure) pairs that both have; at least one is needed.

    Differences are averaged per case, then over cases; p is two-sided, from Wilcoxon's signed-rank test over cases.

    Returns:
        `mean`, `mean_other`, `difference`, `low`, `high`, `p` (these three nan below two cases), `n_cases`, `n` pairs,
        and `n_alone`: values without a partner, such as a structure that only one side invented.
    """
    shared = mine.keys() & theirs.keys()
    means, means_other = (case_means({key: values[key] for key in shared}) for values in (mine, theirs))
    cases = sorted(means)
    gaps = np.array([means[case] - means_other[case] for case in cases])
    low, high = interval(gaps, resampled(len(cases), seed=seed))
    p = math.nan if len(gaps) < 2 else float(stats.wilcoxon(gaps).pvalue) if gaps.any() else 1.0
    return {
        "mean": float(np.mean(list(means.values()))),
        "mean_other": float(np.mean(list(means_other.values()))),
        "difference": float(gaps.mean()),
        "low": low,
        "high": high,
        "p": p,
        "n_cases": len(cases),
        "n": len(shared),
        "n_alone": len(mine.keys() ^ theirs.keys()),
    }
