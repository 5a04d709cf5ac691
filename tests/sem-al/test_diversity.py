"""Choosers: against a plain loop, against clusters that are known, and others' by an entry point."""

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_sem_al import diversity
from medseg_sem_al.diversity import chooser_named, cluster, hybrid, k_centre


def plainly(features, num, known):
    """The same by the whole matrix of distances, in double precision."""
    picked = []
    for _ in range(num):
        centres = np.concatenate([known, features[picked]])
        gaps = np.square(features[:, None].astype(np.float64) - centres[None]).sum(2).min(1)
        picked.append(int(gaps.argmax()))
    return picked


@pytest.mark.parametrize("width", [3, 130])  # within one part, and over several
def test_k_centre_picks_what_a_plain_loop_picks(width):
    rng = np.random.default_rng(0)
    features, known = rng.normal(size=(200, width)).astype(np.float32), rng.normal(size=(3, width)).astype(np.float32)
    assert k_centre(features, 12, known_LF=known).tolist() == plainly(features, 12, known)


def test_without_labels_k_centre_begins_farthest_from_the_mean():
    assert k_centre(np.array([[0.0], [1.0], [2.0], [9.0]]), 2).tolist() == [3, 0]


def test_fewer_come_where_fewer_are():
    assert sorted(k_centre(np.eye(3, dtype=np.float32), 8).tolist()) == [0, 1, 2]


def blobs(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(8 * k, 0.1, (size, 2)) for k, size in enumerate(sizes)]).astype(np.float32)


def test_of_each_cluster_comes_the_most_uncertain_the_largest_first():
    scores = np.zeros(60)
    scores[[4, 25, 58]] = 1
    assert cluster(blobs((20, 30, 10)), 3, scores_N=scores).tolist() == [25, 4, 58]


def test_equal_units_fill_the_quota_by_uncertainty():
    scores = np.array([0.1, 0.5, 0.3, 0.2])
    assert sorted(cluster(np.ones((4, 2), np.float32), 2, scores_N=scores).tolist()) == [1, 2]


def test_hybrid_spreads_over_the_uncertain_alone():
    features, scores = blobs((15, 5)), np.arange(20.0)[::-1]  # the far blob is sure
    picked = hybrid(features, 3, scores_N=scores, known_LF=features[:0])
    assert picked.max() < 15


def test_a_chooser_that_is_not_there_is_refused():
    with pytest.raises(MedsegError, match="did you mean 'core-set'"):
        chooser_named("coreset")


def test_others_choosers_come_by_an_entry_point(monkeypatch):
    class Point:
        name = "last"

        def load(self):
            return lambda features, num: np.arange(len(features))[-num:]

    monkeypatch.setattr(diversity, "entry_points", lambda group: [Point()] if group == diversity.GROUP else [])
    picked = chooser_named("last")(np.eye(5), 2, scores_N=np.ones(5), known_LF=np.eye(5))
    assert picked.tolist() == [3, 4]
