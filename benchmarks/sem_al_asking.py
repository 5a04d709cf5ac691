"""Which strategy saves labels: learning curves on the superalloy and the oxides, labels hidden and asked for.

    python benchmarks/sem_al_asking.py --out asking --protocol short    # hours of two cores; goes on where it was
    python benchmarks/sem_al_asking.py --out asking_long                # the same
    python benchmarks/sem_al_asking.py --out asking_long --part ebc     # a part; two at once use two cores, and
                                                                        # without --part it then joins them
    python benchmarks/sem_al_asking.py --out small --protocol small     # does it run at all?

The protocols, each fixed before its first run. A draw tests a third of the specimens and hides the labels of the
others. Parts of 128 x 128 pixels are asked for: 14 at random at the start, for all strategies of a draw alike, and then
56 more, which is about half of all labels. A round trains on from the network of the one before, with windows and
settings as in `sem_al.py`, but 64 windows an epoch for ebc at half its resolution. `all` learns from every label as
long as all rounds together.

short  four rounds of 14 parts and two epochs. `combined` with the defaults of `query`, `clasp` and `entropy`, beside
       `class-random`, the baseline that must be beaten, and `random`. Five draws of super, three of ebc (five at first;
       cut by the clock before any score was looked at).
long   fixed when the results of `short` were known: its networks are far from what the labels can teach (super, all of
       them: 0.68, where `sem_al.py` reaches 0.85), and three draws say little. Four draws of each, two rounds of 28
       parts, ten epochs (super) or six (ebc), and no more than `combined`, `entropy` and `class-random`, so that it
       ends within two hours of two cores too.

The measure of a strategy is the mean of its curve over the rounds, mean IoU of all tested pictures together, less that
of class-random in the same draw; intervals over the draws are Student's t. A strategy has reached `all` where the mean
of its curves has.
"""

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sem_al import BUDGET, OXIDES, indexed, keep

from medseg_core import figures
from medseg_sem_al.index import Index
from medseg_sem_al.settings import SimulateConfig
from medseg_sem_al.simulate import ALL, Point, compared, plotted, simulate, told


@dataclass(frozen=True)
class Protocol:
    """How much of it."""

    draws: dict[str, int]
    epochs: dict[str, int]
    strategies: tuple[str, ...]
    units: int  # in each round
    rounds: int
    initial: int = 14
    width: int = 16

    def config(self, name: str, draw: int) -> SimulateConfig:
        """Of a simulation."""
        how: dict[str, Any] = {**BUDGET, **(OXIDES | {"epoch_windows": 64} if name == "ebc" else {})}
        how |= {"epochs": self.epochs[name], "width": self.width, "seed": draw, "seeds": 1, "region": 128}
        how |= {"initial": self.initial, "num": self.units, "rounds": self.rounds, "strategies": self.strategies}
        return SimulateConfig(**how)


PARTS = ("super", "ebc")
PROTOCOLS = {
    "short": Protocol(
        {"super": 5, "ebc": 3},
        {"super": 2, "ebc": 2},
        ("combined", "clasp", "entropy", "class-random", "random"),
        units=14,
        rounds=4,
    ),
    "long": Protocol(
        {"super": 4, "ebc": 4}, {"super": 10, "ebc": 6}, ("combined", "entropy", "class-random"), units=28, rounds=2
    ),
    "small": Protocol({"super": 2}, {"super": 1}, ("entropy", "class-random"), units=4, rounds=1, initial=4, width=4),
}


def main() -> None:
    """Runs the draws that are missing, and prints what each strategy is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="long")
    options = parser.parse_args()
    protocol = PROTOCOLS[options.protocol]
    found = {name: drawn(name, protocol, options.out) for name in options.part if name in protocol.draws}
    keep(options.out, {"protocol": asdict(protocol), **found})
    for name, row in found.items():
        print(f"{name}: {told(row['compared'])}")
        for strategy, runs in row["curves"].items():
            points = np.mean([[(point["share"], point["miou"]) for point in run] for run in runs], 0)
            print(f"{strategy:14}", *(f"{share:4.0%} {miou:.3f}" for share, miou in points))


def drawn(name: str, protocol: Protocol, out: Path) -> dict[str, Any]:
    """All draws of a data set: the curves, and what they say together."""
    index = indexed(name, out)
    curves: dict[str, list[list[Point]]] = {strategy: [] for strategy in (*protocol.strategies, ALL)}
    for draw in range(protocol.draws[name]):
        home = out / f"{name}_{draw}"
        divided(index, draw).write(out / "indices" / f"asking_{name}_{draw}.json")
        simulate(out / "indices" / f"asking_{name}_{draw}.json", home, protocol.config(name, draw))
        for strategy, points in read_curves(home / "curves.csv").items():
            curves[strategy].append(points)
    figures.save(plotted(curves), out / f"{name}.png")
    rows = {strategy: [[asdict(point) for point in points] for points in runs] for strategy, runs in curves.items()}
    return {"compared": compared(curves), "curves": rows}


def divided(index: Index, draw: int) -> Index:
    """A third of the specimens, drawn, is tested."""
    names = sorted({case.unit for case in index.cases})
    test = set(np.random.default_rng([11, draw, 0, 0]).permutation(names)[: max(1, len(names) // 3)].tolist())
    cases = tuple(replace(case, split="test" if case.unit in test else "train") for case in index.cases)
    return replace(index, cases=cases)


def read_curves(file: Path) -> dict[str, list[Point]]:
    """Of each strategy its points, in order."""
    found: dict[str, list[Point]] = {}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        strategy, _, _, share, miou = line.split(",")
        found.setdefault(strategy, []).append(Point(float(share), float(miou)))
    return found


if __name__ == "__main__":
    main()
