"""Measures of uncertainty: by hand, by SciPy, and the signs that they must have."""

import math

import numpy as np
import pytest
from scipy.stats import entropy as shannon

from medseg_core.errors import MedsegError
from medseg_sem_al import uncertainty
from medseg_sem_al.uncertainty import bald, boundary, combined, confidence, entropy, margin, measure_named, variance


def probs(num=2, classes=4, edge=45, seed=0):
    rng = np.random.default_rng(seed)
    return np.moveaxis(rng.dirichlet([0.3] * classes, (num, edge, edge)), -1, 1).astype(np.float32)


def test_entropy_is_that_of_scipy_over_its_largest_value():
    p = probs()
    assert entropy(p) == pytest.approx(shannon(p.astype(np.float64), axis=1) / math.log(4), abs=1e-6)


def test_confidence_and_margin_are_those_by_hand():
    p = np.array([0.6, 0.3, 0.1], np.float32).reshape(1, 3, 1, 1)
    assert confidence(p).item() == pytest.approx(0.4)
    assert margin(p).item() == pytest.approx(1 - (0.6 - 0.3))


def test_the_two_largest_may_stand_anywhere():
    p = probs(classes=5)
    ranked = np.sort(p, axis=1)
    assert margin(p) == pytest.approx(1 - (ranked[:, -1] - ranked[:, -2]), abs=1e-6)


@pytest.mark.parametrize("measure", [entropy, confidence, margin])
def test_a_sure_network_has_none_and_an_even_one_the_most(measure):
    sure, even = np.zeros((1, 3, 1, 1), np.float32), np.full((1, 3, 1, 1), 1 / 3, np.float32)
    sure[:, 1] = 1
    assert measure(sure).item() == 0
    assert measure(even).item() == pytest.approx(2 / 3 if measure is confidence else 1, abs=1e-6)


def test_variance_is_over_networks_and_its_mean_over_classes():
    p = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32).reshape(2, 1, 2, 1, 1)
    assert variance(p).item() == pytest.approx(0.04)


def test_bald_is_the_entropy_of_the_mean_less_the_mean_entropy():
    p = np.stack([probs(seed=seed) for seed in range(3)])
    of_mean, each = shannon(p.mean(0), axis=1), shannon(p, axis=2).mean(0)
    assert bald(p) == pytest.approx((of_mean - each) / math.log(4), abs=1e-5)


def test_bald_tells_apart_networks_that_differ_by_a_ten_thousandth():
    p = np.full((2, 1, 2, 1, 1), 0.5)
    p[0, 0, :, 0, 0] += (1e-4, -1e-4)
    mean = 0.50005  # 2 (p - mean)^2 over the mean, half of it, to second order
    assert bald(p).item() == pytest.approx(
        (0.5e-4**2 / (2 * mean) + 0.5e-4**2 / (2 - 2 * mean)) / math.log(2), rel=1e-3
    )


def test_a_boundary_has_two_pixels_of_width():
    ids = np.zeros((5, 6), np.uint8)
    ids[:, 3:] = 2
    assert boundary(ids)[2].tolist() == [False, False, True, True, False, False]


def test_ranks_are_combined_whatever_the_scales():
    scores = {"small": np.array([1e-6, 3e-6, 2e-6]), "large": np.array([10.0, 20.0, 30.0])}
    assert combined(scores, {"small": 3.0, "large": 1.0}) == pytest.approx([1 / 3, (3 + 2 / 3) / 4, (2 + 1) / 4])


def test_what_needs_several_networks_says_so():
    with pytest.raises(MedsegError, match="bald needs several networks; give --model several times"):
        measure_named("bald", ensemble=False)


def test_a_measure_that_is_meant_is_told():
    with pytest.raises(MedsegError, match="did you mean 'entropy'"):
        measure_named("boundary-entropi", ensemble=False)


def test_others_measures_come_by_an_entry_point(monkeypatch):
    class Point:
        name = "top"

        def load(self):
            return lambda probs_NKHW: probs_NKHW[:, -1]

    monkeypatch.setattr(uncertainty, "entry_points", lambda group: [Point()] if group == uncertainty.GROUP else [])
    p = np.stack([probs(seed=seed) for seed in range(2)])
    assert measure_named("top", ensemble=True)(p) == pytest.approx(p.mean(0)[:, -1])
