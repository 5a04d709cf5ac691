"""Which units of a pool to label next. Axes: N units, K classes, F features, L labelled units.

| strategy | what it takes | source |
|---|---|---|
| combined | shares of the picks by `--diversity`, the rest by `--uncertainty` alone | |
| random | any | |
| class-random | a predicted class, each as often; a unit by how much it has of it | after nnActive, 2025 |
| clasp | by entropy, two thirds of them class by class; less and less noise | after ClaSP PE, Lüth et al., 2026 |

The name of a measure or of a chooser alone is a strategy too.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from medseg_core.errors import MedsegError
from medseg_sem_al.diversity import CHOOSERS, chooser_named
from medseg_sem_al.settings import QueryConfig
from medseg_sem_al.uncertainty import MEASURES, OF_ENSEMBLES, combined, measure_named

DRAWN = ("random", "class-random", "clasp")
BY_CLASS = 2 / 3  # of clasp's picks
SHARPNESS = (1.0, 100.0)  # of clasp, in the first and in the last round; higher is less noise


@dataclass(frozen=True)
class Units:
    """What is known of the units of a pool.

    Args:
        scores: measure -> (N,) mean over the unit.
        shares: (N, K) of the predicted classes.
        unsure: (N, K) mean entropy of the pixels of each predicted class, 0 without any.
        features: (N, F) of length 1; no columns where nobody asked.
        known: (L, F) the same of units that are labelled.
    """

    scores: Mapping[str, np.ndarray]
    shares: np.ndarray
    unsure: np.ndarray
    features: np.ndarray
    known: np.ndarray

    def __len__(self) -> int:
        return len(self.shares)


@dataclass(frozen=True)
class Plan:
    """A strategy taken apart.

    Args:
        drawn: one of `DRAWN`, or "" for what follows.
        measures: name -> weight of its ranks.
        choosers: name -> share of the picks.
    """

    drawn: str
    measures: Mapping[str, float]
    choosers: Mapping[str, float]


def plan_of(config: QueryConfig) -> Plan:
    """What the settings ask for.

    Raises:
        MedsegError: an unknown name, weights that are none, or shares of more than all.
    """
    measures, choosers = weights(config.uncertainty, "--uncertainty"), weights(config.diversity, "--diversity")
    if sum(choosers.values()) > 1 + 1e-9:
        raise MedsegError(f"--diversity {config.diversity} are shares of the picks; let them add up to 1 or less")
    if not measures:
        raise MedsegError("--uncertainty names no measure; try entropy=1")
    name = config.strategy
    if name == "combined":
        return Plan("", measures, choosers)
    if name in DRAWN:
        return Plan(name, {"entropy": 1.0}, {})
    with suppress(MedsegError):
        measure_named(name, ensemble=True)
        return Plan("", {name: 1.0}, {})
    with suppress(MedsegError):
        chooser_named(name)
        return Plan("", measures, {name: 1.0})
    known = ["combined", *DRAWN, *MEASURES, *OF_ENSEMBLES, *CHOOSERS]
    raise MedsegError(f"there is no strategy {name!r}; there are {', '.join(known)}")


def weights(text: str, flag: str) -> dict[str, float]:
    """`entropy=1,margin=0.5` -> name: weight; those of 0 are left out.

    Raises:
        MedsegError: no such list, or a weight below 0.
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value < np.inf or name in found:
            raise MedsegError(f"{flag} {text!r} must be names with weights, each once: entropy=1,margin=0.5")
        found[name] = value
    return {name: value for name, value in found.items() if value}


def choose(
    units: Units, num: int, plan: Plan, rng: np.random.Generator, *, progress: float = 0.0
) -> list[tuple[int, str, float]]:
    """Up to `num` units: place, what chose it, and its score, the higher the more uncertain, in (0, 1].

    Args:
        progress: of the rounds, from 0 to 1; clasp draws with less noise later.
    """
    num = min(num, len(units))
    score_N = combined(units.scores, plan.measures)
    if plan.drawn == "random":
        picked = {"random": rng.permutation(len(units))[:num].tolist()}
    elif plan.drawn == "class-random":
        picked = {"class-random": class_random(units.shares, num, rng)}
    elif plan.drawn == "clasp":
        picked = {"clasp": clasp(units, num, rng, progress=progress)}
    else:
        picked = _by_shares(units, num, plan, score_N)
    return [(place, why, float(score_N[place])) for why, places in picked.items() for place in places]


def _by_shares(units: Units, num: int, plan: Plan, score_N: np.ndarray) -> dict[str, list[int]]:
    """The most uncertain first, then what differs from these and from what is labelled."""
    quotas = {name: int(share * num + 0.5) for name, share in plan.choosers.items()}
    while sum(quotas.values()) > num:  # halves were rounded up
        quotas[max(quotas, key=lambda name: quotas[name])] -= 1
    left = np.argsort(-score_N, kind="stable")
    first = num - sum(quotas.values())
    picked = {"uncertainty": left[:first].tolist()}
    left = np.sort(left[first:])
    known_LF = np.concatenate([units.known, units.features[picked["uncertainty"]]])
    for name, quota in quotas.items():
        if not quota:
            continue
        chooser = chooser_named(name)
        places = np.asarray(chooser(units.features[left], quota, scores_N=score_N[left], known_LF=known_LF))
        if len(set(places.tolist())) < len(places) or not np.isin(places, np.arange(len(left))).all():
            raise MedsegError(f"{name} must choose each unit once, by places from 0 to {len(left) - 1}")
        picked[name] = left[places[:quota]].tolist()
        known_LF = np.concatenate([known_LF, units.features[picked[name]]])
        left = np.setdiff1d(left, picked[name])
    return picked


def class_random(shares_NK: np.ndarray, num: int, rng: np.random.Generator) -> list[int]:
    """For each pick a class, as likely as any other that is left, and a unit by its pixels of that class."""
    left, picked = shares_NK.astype(np.float64), list[int]()
    while len(picked) < num:
        there = np.flatnonzero(left.sum(0) > 0)
        k = rng.choice(there)
        place = int(rng.choice(len(left), p=left[:, k] / left[:, k].sum()))
        picked.append(place)
        left[place] = 0
    return picked


def clasp(units: Units, num: int, rng: np.random.Generator, *, progress: float) -> list[int]:
    """Two thirds of the picks go round the classes that are predicted, by the entropy of their pixels; the rest by that
    of all pixels. A pick is the highest log score times the sharpness, plus Gumbel noise: one drawn by a power of it.
    """
    low, high = SHARPNESS
    sharpness = low * (high / low) ** progress
    of_class = [k for k in range(units.shares.shape[1]) if units.shares[:, k].any()]
    by_class = round(BY_CLASS * num)
    turns = [of_class[n % len(of_class)] for n in range(by_class)] + [-1] * (num - by_class)
    free, picked = np.ones(len(units), bool), list[int]()
    for turn in turns:
        k = turn if turn >= 0 and units.shares[free, turn].any() else -1  # unless nothing of that class is left
        score_N = units.scores["entropy"] if k < 0 else units.unsure[:, k]
        noisy_N = sharpness * np.log(np.maximum(score_N, 1e-12)) + rng.gumbel(size=len(units))
        picked.append(int(np.where(free, noisy_N, -np.inf).argmax()))
        free[picked[-1]] = False
    return picked
