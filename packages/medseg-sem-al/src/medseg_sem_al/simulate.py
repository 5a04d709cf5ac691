"""What a strategy saves: labels are hidden, asked for and revealed, round by round, and each network is scored.

OUT/curves.csv, curves.png   mean IoU on the test part over the share of labelled pixels, of each strategy and seed
OUT/results.json     where the curves end, their means, what differs from class-random, all with intervals over seeds
OUT/cells/           of each strategy and seed its rounds; the same call goes on where it was

A start is `initial` units drawn at random, the same for all strategies of a seed. Each round trains on from the network
of the one before. `all` is trained on every label as long as all rounds together. Pictures of the validation part take
no part.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t

from medseg_core import figures
from medseg_core.config import as_dict, strict
from medseg_core.errors import MedsegError
from medseg_core.io import write_text
from medseg_core.progress import track
from medseg_core.table import write_csv
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.committee import Committee
from medseg_sem_al.confusion import confusion, mean_iou
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.parts import Box, boxes, part_of
from medseg_sem_al.pool import score_pool
from medseg_sem_al.predict import Predictor
from medseg_sem_al.query import ask
from medseg_sem_al.relabel import relabelled
from medseg_sem_al.settings import AskConfig, QueryConfig, SegConfig, SimulateConfig
from medseg_sem_al.start import Start
from medseg_sem_al.strategies import plan_of
from medseg_sem_al.train import train

ALL = "all"
BASELINE = "class-random"
Unit = tuple[str, Box]


@dataclass(frozen=True)
class Point:
    """A network of a round.

    Args:
        share: of the pixels of all training pictures that are labelled.
        miou: on the test part, all its pixels together.
    """

    share: float
    miou: float


def simulate(index_file: Path, out: Path, config: SimulateConfig) -> dict[str, Any]:
    """Runs every strategy from every start, and compares them.

    Args:
        index_file: what `index` made, with labelled pictures in the training and in the test part.

    Returns:
        What `results.json` holds.

    Raises:
        MedsegError: no such pictures, an unknown strategy, more units asked for than there are, or another simulation.
    """
    world = World(read_index(index_file), Path(out), config)
    if len(set(config.strategies)) < len(config.strategies):
        raise MedsegError("--strategies names one twice; each is done once from every start")
    for name in config.strategies:
        plan_of(_queried(config, name))  # refuses it before the work
    world.begin()
    found: dict[str, list[list[Point]]] = {name: [] for name in (*config.strategies, ALL)}
    for seed in track(range(config.seeds), "Seeds"):
        first = world.start(seed)
        for name in config.strategies:
            found[name].append(world.rounds(name, seed, first))
        found[ALL].append([world.everything(seed)])
    told = compared(found)
    write_text(out / "results.json", json.dumps(strict({**told, "settings": as_dict(config)}), indent=1) + "\n")
    rows = [
        {"strategy": name, "seed": seed, "round": number, "share": point.share, "miou": point.miou}
        for name, runs in found.items()
        for seed, points in enumerate(runs)
        for number, point in enumerate(points)
    ]
    write_csv(out / "curves.csv", rows, list(rows[0]))
    figures.save(plotted(found), out / "curves.png")
    return told


class World:
    """Hidden labels, and networks that learn of what is revealed.

    Args:
        index: of labelled pictures.
        out: where the cells go.
    """

    def __init__(self, index: Index, out: Path, config: SimulateConfig) -> None:
        labelled = [case for case in index.cases if "label" in case.files]
        self.hidden = {case.id: index.label(case) for case in labelled if case.split == "train"}
        self.tests = {case.id: index.label(case) for case in labelled if case.split == "test"}
        if not self.hidden or not self.tests:
            said = f"{len(self.hidden)} labelled pictures to train on and {len(self.tests)} to test on"
            raise MedsegError(f"the index has {said}; a simulation needs both: index with --split 0.7,0,0.3")
        kept = tuple(case for case in labelled if case.split in ("train", "test"))
        self.index, self.out, self.config = replace(index, cases=kept), out, config
        self.units: list[Unit] = [
            (name, box)
            for name, ids in self.hidden.items()
            for box in boxes(ids.shape, config.region)
            if (ids[part_of(box)] != UNSEEN).any()
        ]
        if (most := config.initial + config.rounds * config.num) > len(self.units):
            said = f"{most} units are asked for and {len(self.units)} are there"
            raise MedsegError(f"{said}; take fewer by --initial, --num and --rounds, or a smaller --region")

    def begin(self) -> None:
        """Makes the folder, or finds it as this very call left it."""
        file = self.out / "settings.json"
        pixels = {name: int((ids != UNSEEN).sum()) for name, ids in (self.hidden | self.tests).items()}
        text = json.dumps(strict({"settings": as_dict(self.config), "labelled": pixels}), indent=1) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise MedsegError(f"{self.out} holds a simulation of other settings or labels; choose another --out")
        if not file.is_file() and self.out.is_dir() and any(self.out.iterdir()):
            raise MedsegError(f"{self.out} is not empty and holds no simulation; choose another --out")
        write_text(file, text)

    def start(self, seed: int) -> list[Unit]:
        """Units of which all strategies begin."""
        order = np.random.default_rng([self.config.seed + seed, 1, 0, 0]).permutation(len(self.units))
        return [self.units[place] for place in order[: self.config.initial]]

    def rounds(self, strategy: str, seed: int, known: Sequence[Unit]) -> list[Point]:
        """A point for the start, which all strategies share, and for each round."""
        cell, run, points = self.out / "cells" / f"start_{seed}", None, []
        for number in range(self.config.rounds + 1):
            points.append(self._learn(cell, known, seed, run))
            if number < self.config.rounds:
                run, cell = cell / "run", self.out / "cells" / f"{strategy}_{seed}" / f"round_{number + 1:02d}"
                known = [*known, *self._asked(cell, known, strategy, seed, run, number)]
        return points

    def everything(self, seed: int) -> Point:
        """Of a network that learns from all labels at once, as long as the others."""
        cell = self.out / "cells" / f"{ALL}_{seed}"
        return self._learn(cell, self.units, seed, None, epochs=self.config.epochs * (self.config.rounds + 1))

    def _asked(self, cell: Path, known: Sequence[Unit], strategy: str, seed: int, run: Path, number: int) -> list[Unit]:
        """What the strategy asks the network of the round before for."""
        file = cell / "asked.json"
        if not file.is_file():
            config = replace(_queried(self.config, strategy), seed=self.config.seed + seed)
            plan, index = plan_of(config), self._revealed(cell / "labels", known)
            pool = score_pool(index, Committee([run], config), plan, config, cell / "pool")
            chosen = ask(pool, plan, config, progress=number / max(self.config.rounds - 1, 1))
            write_text(file, json.dumps([[one.case, one.box] for one in chosen]) + "\n")
        return [(case, tuple(box)) for case, box in json.loads(file.read_text(encoding="utf-8"))]

    def _learn(
        self, cell: Path, known: Sequence[Unit], seed: int, before: Path | None, *, epochs: int | None = None
    ) -> Point:
        """Trains on what is known, and scores."""
        file = cell / "counts.json"
        if not file.is_file():
            index = self._revealed(cell / "labels", known)
            index.write(cell / "index.json")
            names = {field: getattr(self.config, field) for field in SegConfig.__dataclass_fields__}
            config = SegConfig(**{**names, "seed": self.config.seed + seed, "epochs": epochs or self.config.epochs})
            result = train(cell / "index.json", cell / "run", config, start=Start(init=before), resume="last")
            if result.reason == "stopped":
                raise MedsegError("stopped; the same call goes on")
            predictor = Predictor(cell / "run", _queried(self.config, "random"))
            total = np.zeros((len(predictor.names),) * 2, np.int64)
            for case in self.index.cases:
                if case.id in self.tests:
                    mask = predictor.mask(self.index.stack(case))
                    total += confusion(mask, self.tests[case.id], len(total))
            write_text(file, json.dumps(total.tolist()) + "\n")
        counts = np.array(json.loads(file.read_text(encoding="utf-8")))
        areas = [
            sum(int((self.hidden[n][part_of(box)] != UNSEEN).sum()) for n, box in some) for some in (known, self.units)
        ]
        return Point(areas[0] / areas[1], float(mean_iou(counts)))

    def _revealed(self, folder: Path, known: Sequence[Unit]) -> Index:
        """The index of what is labelled so far; the test part is not in it."""
        masks = {name: np.full_like(ids, UNSEEN) for name, ids in self.hidden.items()}
        for name, box in known:
            masks[name][part_of(box)] = self.hidden[name][part_of(box)]
        index = replace(self.index, cases=tuple(case for case in self.index.cases if case.id in self.hidden))
        return relabelled(index, masks, folder)


def compared(found: Mapping[str, Sequence[Sequence[Point]]]) -> dict[str, Any]:
    """Intervals (95 %, Student's t over seeds): where each strategy ends, the mean of its curve, and by how much that
    is above class-random's of the same starts; and the least share of labels with which it reached `all`, on average.
    """
    goal = float(np.mean([points[-1].miou for points in found[ALL]]))
    told: dict[str, Any] = {}
    for name, runs in found.items():
        scores = np.array([[point.miou for point in points] for points in runs])
        told[name] = {"end": spread(scores[:, -1]), "curve": spread(scores.mean(1))}
        if BASELINE in found and name not in (BASELINE, ALL):
            other = np.array([[point.miou for point in points] for points in found[BASELINE]])
            told[name][f"curve - {BASELINE}"] = spread(scores.mean(1) - other.mean(1))
        shares = [np.mean([points[n].share for points in runs]) for n in range(scores.shape[1])]
        reached = np.flatnonzero(scores.mean(0) >= goal)
        told[name]["share"] = float(shares[-1])
        told[name]["reaches all with"] = float(shares[reached[0]]) if len(reached) else None
    return {"strategies": told, "all": goal}


def told(found: Mapping[str, Any]) -> str:
    """A line for each strategy."""
    lines = [f"all labels reach {found['all']:.3f}"]
    for name, row in found["strategies"].items():
        if name == ALL:
            continue
        line = f"{name:14} ends at {_interval(row['end'])} with {row['share']:.0%} of the labels"
        if gap := row.get(f"curve - {BASELINE}"):
            line += f"; its curve is {_interval(gap, '+')} above {BASELINE}'s"
        if row["reaches all with"]:
            line += f"; reaches all labels with {row['reaches all with']:.0%}"
        lines.append(line)
    return "\n".join(lines)


def plotted(found: Mapping[str, Sequence[Sequence[Point]]]) -> Figure:
    """A line for each strategy through its mean, its interval behind it; dashed what all labels reach."""
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, runs) in enumerate(found.items()):
        rows = [spread(np.array([points[n].miou for points in runs])) for n in range(len(runs[0]))]
        means, lows, highs = ([row[word] for row in rows] for word in ("mean", "low", "high"))
        if name == ALL:
            axes.axhline(means[0], color="black", ls="--", lw=1, label="all labels")
            continue
        shares = [100 * np.mean([points[n].share for points in runs]) for n in range(len(runs[0]))]
        axes.plot(shares, means, marker="o", ms=3, color=f"C{number}", label=name)
        axes.fill_between(shares, np.clip(lows, 0, 1), np.clip(highs, 0, 1), color=f"C{number}", alpha=0.07, lw=0)
    axes.set_xlabel("labelled pixels, %")
    axes.set_ylabel("mean IoU on the test part")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figures.plain(axes)
    return figure


def _interval(row: Mapping[str, float], sign: str = "") -> str:
    return f"{row['mean']:{sign}.3f} [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, and the ends of its 95 % interval by Student's t; nan for a single value."""
    mean, num = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, num - 1) * np.std(values, ddof=1) / num**0.5) if num > 1 else float("nan")
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _queried(config: SimulateConfig, strategy: str) -> QueryConfig:
    names = {field: getattr(config, field) for field in AskConfig.__dataclass_fields__}
    return QueryConfig(**names, num=config.num, strategy=strategy)
