"""Means over cases with bootstrap intervals, and paired comparisons: patients are drawn, never rows.

The structures of one patient are not independent, so a case's values are averaged first and every case counts the same.
Intervals are the 2.5th and 97.5th percentile of the means of 2000 draws of the cases with replacement (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993), and nan below two cases.
"""

import math

import numpy as np
from scipy import stats

NUM_RESAMPLES = 2000
EXACT = 50  # cases up to which a test counts all ways
BLOCK = 100  # draws at a time: 8 MB for ten thousand cases


def intervals(per_case: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Low and high ends (2, C) for the means of the columns of (N, C), nan where a case has no value.

    The same cases are drawn for every column, so what is compared is drawn together.
    """
    num_cases, num_columns = per_case.shape
    there = np.isfinite(per_case)
    filled, counted = np.where(there, per_case, 0.0), there.astype(float)
    rng = np.random.default_rng([seed, 0, 0, 0])
    means = np.empty((NUM_RESAMPLES, num_columns))
    for start in range(0, NUM_RESAMPLES, BLOCK):
        drawn = rng.multinomial(num_cases, np.full(num_cases, 1 / max(num_cases, 1)), size=BLOCK).astype(float)
        num = drawn @ counted
        means[start : start + BLOCK] = np.divide(drawn @ filled, num, out=np.full_like(num, math.nan), where=num > 0)
    ends = np.full((2, num_columns), math.nan)
    for column in np.flatnonzero(there.sum(0) > 1):
        known = means[:, column]
        ends[:, column] = np.percentile(known[np.isfinite(known)], (2.5, 97.5))
    return ends


def case_means(values: np.ndarray, case: np.ndarray, num_cases: int) -> np.ndarray:
    """(N,) mean of the finite values (R,) of each case, nan for a case of none; `case` (R,) holds their places."""
    there = np.isfinite(values)
    num = np.bincount(case[there], minlength=num_cases)
    total = np.bincount(case[there], values[there], minlength=num_cases)
    return np.divide(total, num, out=np.full(num_cases, math.nan), where=num > 0)


def wilcoxon(gaps: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over the cases' finite differences (N,); nan below two cases.

    Differences of 0 are left out (Wilcoxon, 1945); 1 where nothing else is left. Up to 50 cases p is exact, with ties
    too: all 2^N ways to give the ranks their signs are counted. Above, it is the normal approximation.
    """
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < 2:
        return math.nan
    gaps = gaps[gaps != 0]
    if not len(gaps):
        return 1.0
    if len(gaps) > EXACT:
        return float(stats.wilcoxon(gaps, method="approx").pvalue)
    doubled = np.rint(2 * stats.rankdata(np.abs(gaps))).astype(int)  # ranks of ties end in a half
    chance = np.zeros(doubled.sum() + 1)
    chance[0] = 1.0
    for rank in doubled:
        chance[rank:] = chance[rank:] / 2 + chance[: len(chance) - rank] / 2
        chance[:rank] /= 2
    positive = doubled[gaps > 0].sum()
    return float(min(1.0, 2 * min(chance[: positive + 1].sum(), chance[positive:].sum())))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values of a family of tests, corrected for their number (Holm, 1979); nan stays, and is no test."""
    corrected = np.full(len(p), math.nan)
    order = [int(i) for i in np.argsort(p) if math.isfinite(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected
