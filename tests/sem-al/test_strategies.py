"""Strategies: what they must choose of pools that are made for it."""

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_sem_al.settings import QueryConfig
from medseg_sem_al.strategies import Units, choose, plan_of, weights


def pool(num=10, *, entropy=None, shares=None, features=None, known=None):
    entropy = np.linspace(0, 1, num) if entropy is None else np.asarray(entropy, float)
    shares = np.full((num, 2), 0.5) if shares is None else np.asarray(shares, float)
    features = np.eye(num, dtype=np.float32) if features is None else np.asarray(features, np.float32)
    known = np.zeros((0, features.shape[1]), np.float32) if known is None else np.asarray(known, np.float32)
    scores = dict.fromkeys(("entropy", "confidence", "margin"), entropy)
    return Units(scores, shares, entropy[:, None] * (shares > 0), features, known)


def chosen(units, num, progress=0.0, seed=0, **settings):
    picks = choose(units, num, plan_of(QueryConfig(**settings)), np.random.default_rng(seed), progress=progress)
    return [place for place, _, _ in picks]


def reasons(units, num, **settings):
    return [why for _, why, _ in choose(units, num, plan_of(QueryConfig(**settings)), np.random.default_rng(0))]


def test_a_measure_alone_takes_the_most_uncertain_first():
    assert chosen(pool(), 3, strategy="entropy") == [9, 8, 7]


def test_shares_of_the_picks_are_those_that_were_asked_for():
    assert sorted(reasons(pool(30), 20)) == ["cluster"] * 6 + ["core-set"] * 10 + ["uncertainty"] * 4


def test_no_more_are_chosen_than_asked_for_where_halves_are_rounded():
    assert len(reasons(pool(), 1, diversity="core-set=0.5,cluster=0.5")) == 1


def test_nothing_is_chosen_twice():
    assert sorted(chosen(pool(), 10)) == list(range(10))


def test_core_set_stays_away_from_what_is_labelled():
    features = np.array([[0.0], [1.0], [5.0], [9.0], [10.0]])
    assert chosen(pool(5, features=features, known=[[10.0]]), 2, strategy="core-set") == [0, 2]


def test_core_set_stays_away_from_the_uncertain_that_were_taken_before_it():
    features = np.array([[0.0], [1.0], [5.0], [9.0], [10.0]])
    assert chosen(pool(5, features=features), 2, diversity="core-set=0.5") == [4, 0]


def test_class_random_takes_a_rare_class_as_often_as_a_common_one():
    shares = np.array([[1.0, 0.0]] * 99 + [[0.0, 1.0]])
    rare = [99 in chosen(pool(100, shares=shares), 1, strategy="class-random", seed=seed) for seed in range(200)]
    assert 0.4 < np.mean(rare) < 0.6  # four standard deviations are 0.14; of all units it would be a hundredth


def test_random_takes_any_as_often():
    picks = [chosen(pool(4), 1, strategy="random", seed=seed)[0] for seed in range(400)]
    assert np.bincount(picks).tolist() == pytest.approx([100] * 4, abs=35)  # four standard deviations


def test_clasp_is_sharp_at_the_end():
    assert chosen(pool(), 3, strategy="clasp", progress=1.0) == [9, 8, 7]


def test_clasp_is_a_power_draw_at_the_start():
    firsts = [chosen(pool(2, entropy=[1.0, 3.0]), 1, strategy="clasp", seed=seed)[0] for seed in range(400)]
    assert np.mean(firsts) == pytest.approx(0.75, abs=0.09)  # probabilities as the scores; four standard deviations


def test_clasp_goes_round_the_classes():
    shares = np.array([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    entropy = [1.0] * 9 + [0.01]
    assert 9 in chosen(pool(shares=shares, entropy=entropy), 3, strategy="clasp", progress=1.0)


def test_a_strategy_that_is_not_there_is_refused():
    with pytest.raises(MedsegError, match="there is no strategy 'entropie'; there are combined, random"):
        plan_of(QueryConfig(strategy="entropie"))


@pytest.mark.parametrize("text", ["entropy", "entropy=x", "entropy=-1", "entropy=1,entropy=2", "entropy=inf"])
def test_a_list_without_weights_is_refused(text):
    with pytest.raises(MedsegError, match="must be names with weights"):
        weights(text, "--uncertainty")


def test_more_shares_than_all_are_refused():
    with pytest.raises(MedsegError, match="add up to 1 or less"):
        plan_of(QueryConfig(diversity="core-set=0.8,cluster=0.3"))


def test_core_set_stays_away_from_what_another_chooser_took():
    features = np.array([[0.0], [1.0], [5.0], [9.0], [10.0]])
    entropy = [0.0, 0.0, 0.0, 0.0, 1.0]  # cluster takes the last
    assert chosen(pool(5, features=features, entropy=entropy), 2, diversity="cluster=0.5,core-set=0.5") == [4, 0]


def test_class_random_takes_nothing_twice():
    assert sorted(chosen(pool(6), 6, strategy="class-random")) == list(range(6))
