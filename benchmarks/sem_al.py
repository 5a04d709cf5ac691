"""What a small network learns of few micrographs: beside the majority class and the pixel classifier of many labs.

    python benchmarks/sem_al.py --out sem_al                  # hours of two cores; goes on where it was
    python benchmarks/sem_al.py --out sem_al --part super     # a part: super, ebc (all labels), one (a single label)
    python benchmarks/sem_al.py --out small --small           # does it run at all?

The protocol, fixed before the first run. All labels: ebc (15 pictures) and super (14), three folds by specimen, drawn
once; each picture is tested once by each of three seeds. Of those that are not tested a fifth of the specimens choose
the epoch, the others are trained on. `one`: super; five times two specimens are tested, and of the others a single
picture has a label and the rest are a pool without; nothing is left to choose an epoch by, so the last one counts.

Every network is the default U-Net, from 16 channels on, and sees 20 epochs (`one`: 12) of 128 windows of 128 x 128 in
batches of 8; AdamW from 1e-3 down by a cosine, EMA 0.99, Dice and cross entropy. `one` compares random weights; the
same after self-supervision on all pictures but the tested ones; as long again with the pool (pseudo), and as long again
without.
An oxide of ebc is a layer of 150 to 250 pixels that looks like the one below it, and a crack in it has 0.3 % of the
pixels: ebc is taken at half its resolution by everybody (mean of 2 x 2 pixels, every other one of a mask), and the
network sees 24 epochs of 32 windows of 256 x 256 in batches of 2, mirrored left to right alone, from 2e-3 down, EMA
0.95, Dice and balanced cross entropy. This was chosen, of eight tries, by the three validation pictures of the first
fold with one seed; they are tested in the other folds.
The pixel classifier is a random forest on the multiscale features of scikit-image (intensity, edges, texture; 1 to 16
pixels), with the settings of its example, trained on the same pictures; once more with classes that count alike.

The measure is the mean IoU over classes of all tested pictures together, per seed. Intervals with all labels are over
specimens (bootstrap, seeds averaged), those of `one` over the five draws (Student's t).
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from medseg_core.cases import Case
from medseg_core.config import strict
from medseg_core.io import write_picture, write_text
from medseg_core.trainer import Result
from medseg_core.volume import Picture
from medseg_sem_al.confusion import confusion, mean_iou, per_class
from medseg_sem_al.index import Index, build_index
from medseg_sem_al.predict import Predictor
from medseg_sem_al.pretrain import pretrain
from medseg_sem_al.pseudo import pseudo
from medseg_sem_al.settings import IndexConfig, PretrainConfig, PseudoConfig, SegConfig
from medseg_sem_al.simulate import spread
from medseg_sem_al.start import Start
from medseg_sem_al.train import train

COLOURS = {"matrix": "grey", "secondary": "#0000ff", "tertiary": "#ff0000"}
GROUPS = {"super": r"spot\d+", "ebc": "sequence"}
FOREST_PIXELS = 100_000  # of a picture that the forest is trained on
NUM_RESAMPLES = 2000
PARTS = ("super", "ebc", "one")

BUDGET = {
    "size": 128, "epoch_windows": 128, "batch_size": 8, "lr": 1e-3, "channels_last": True, "val_every": 4,
    "device": "cpu",
}  # fmt: skip
OXIDES = {
    "size": 256, "epoch_windows": 32, "batch_size": 2, "lr": 2e-3, "ema": 0.95, "loss": "dice_balanced_ce",
    "flip_axes": (1,), "turn_chance": 0.0, "val_every": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """How much of it."""

    datasets: tuple[str, ...] = ("super", "ebc")
    folds: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    draws: int = 5
    width: int = 16
    epochs: int = 20
    epochs_of_one: int = 12
    epochs_of_ebc: int = 24

    def budget(self, name: str, seed: int) -> dict[str, Any]:
        """Of a run on all labels of a data set."""
        if name == "ebc":
            return {**BUDGET, **OXIDES, "epochs": self.epochs_of_ebc, "seed": seed}
        return {**BUDGET, "epochs": self.epochs, "seed": seed}


FULL = Protocol()
SMALL = Protocol(datasets=("super",), folds=2, seeds=(0,), draws=2, width=4, epochs=2, epochs_of_one=2)


def main() -> None:
    """Makes the cells that are missing, and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    protocol = SMALL if options.small else FULL
    told: dict[str, Any] = {}
    for part in options.part:
        if part == "one":
            told[part] = one(protocol, options.out)
        elif part in protocol.datasets:
            told[part] = labels(part, protocol, options.out)
    about = {"protocol": asdict(protocol), "budget": BUDGET, "budget of ebc": OXIDES}
    keep(options.out, {**about, **told})
    for row in (row for rows in told.values() for row in rows):
        print(" ".join(f"{value:+.3f}" if isinstance(value, float) else str(value) for value in row.values()))


def keep(out: Path, content: Mapping[str, Any]) -> None:
    """OUT/results.json, with the command and the machine."""
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    document = {"command": " ".join(sys.argv), "machine": machine, **content}
    write_text(out / "results.json", json.dumps(strict(document), indent=1) + "\n")


def indexed(name: str, out: Path) -> Index:
    """One of the shared data sets."""
    config = IndexConfig(group=GROUPS[name], split=(1.0, 0.0, 0.0))
    root = Path(os.environ["MEDSEG_TEST_DATA"]) / "sem" / name
    if name == "super":
        file = out / "classes.json"
        write_text(file, json.dumps(COLOURS))
        return build_index(root, config, colours=file)
    whole, home = build_index(root, config), out / "data" / name
    for case in whole.cases:
        grey = whole.image(case)
        half = grey.reshape(grey.shape[0] // 2, 2, grey.shape[1] // 2, 2).mean((1, 3))
        write_picture(Picture(np.rint(255 * half).astype(np.uint8)), home / "images" / f"{case.id}.png")
        write_picture(Picture(whole.label(case)[::2, ::2]), home / "masks" / f"{case.id}.png")
    return build_index(home, config)


def parts(index: Index, num: int) -> list[list[str]]:
    """The specimens, in `num` parts of about as many pictures, drawn once."""
    names = sorted({case.unit for case in index.cases})
    sizes = {name: sum(case.unit == name for case in index.cases) for name in names}
    found: list[list[str]] = [[] for _ in range(num)]
    order = np.random.default_rng([7, 0, 0, 0]).permutation(names).tolist()
    for name in sorted(order, key=lambda name: -sizes[name]):
        min(found, key=lambda part: sum(sizes[one] for one in part)).append(name)
    return found


def labels(name: str, protocol: Protocol, out: Path) -> list[dict[str, Any]]:
    """All labels: a row each for the network, the forest and the majority class, and their differences."""
    index = indexed(name, out)
    counts: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for fold, test in enumerate(parts(index, protocol.folds)):
        rest = sorted({case.unit for case in index.cases} - set(test))
        val = np.random.default_rng([7, fold, 0, 0]).permutation(rest)[: max(1, round(0.2 * len(rest)))]
        roles = {**dict.fromkeys(rest, "train"), **dict.fromkeys(val.tolist(), "val"), **dict.fromkeys(test, "test")}
        divided = replace(index, cases=tuple(replace(case, split=roles[case.unit]) for case in index.cases))
        file = out / "indices" / f"{name}_{fold}.json"
        divided.write(file)
        for seed in protocol.seeds:
            cell = out / "cells" / f"{name}_{fold}_{seed}"
            config = SegConfig(**protocol.budget(name, seed), width=protocol.width)
            for method, found in {
                "network": _cell(cell, divided, partial(train, file, cell / "run", config, resume="last")),
                "forest": _forest(cell, divided, seed),
                "balanced forest": _forest(cell, divided, seed, balanced=True),
            }.items():
                counts.setdefault(method, {}).setdefault(seed, {}).update(found)
    cases = sorted(index.cases, key=lambda case: case.id)
    stacked = {
        method: np.stack([[by_case[case.id] for case in cases] for by_case in seeds.values()])
        for method, seeds in counts.items()
    }
    return _table(name, stacked, [case.unit for case in cases], list(index.classes.names))


def _cell(cell: Path, index: Index, make: Callable[[], Result]) -> dict[str, np.ndarray]:
    """(K, K) of each tested picture; the network is trained where that is not known."""
    file = cell / "counts.json"
    if not file.is_file():
        if make().reason == "stopped":
            raise SystemExit("stopped; the same call goes on")
        predictor = Predictor(cell / "run")
        num = len(predictor.names)
        tested = (case for case in index.cases if case.split == "test")
        found = {c.id: confusion(predictor.mask(index.stack(c)), index.label(c), num).tolist() for c in tested}
        write_text(file, json.dumps(found))
    return {name: np.array(rows) for name, rows in json.loads(file.read_text()).items()}


def _forest(cell: Path, index: Index, seed: int, *, balanced: bool = False) -> dict[str, np.ndarray]:
    """The same of a random forest; those that choose the epoch of a network teach it too."""
    file = cell / ("balanced_forest.json" if balanced else "forest.json")
    if not file.is_file():
        rng, xs, ys = np.random.default_rng([seed, 0, 0, 0]), [], []
        for case in index.cases:
            if case.split in ("train", "val") and "label" in case.files:
                label = index.label(case).ravel()
                some = rng.choice(label.size, min(FOREST_PIXELS, label.size), replace=False)
                xs.append(_features(index.image(case))[some])
                ys.append(label[some])
        how = {"n_estimators": 50, "max_depth": 10, "max_samples": 0.05, "n_jobs": 1, "random_state": seed}
        how |= {"class_weight": "balanced"} if balanced else {}
        forest = RandomForestClassifier(**how).fit(np.concatenate(xs), np.concatenate(ys))
        found = {}
        for case in (case for case in index.cases if case.split == "test"):
            mask = forest.predict(_features(index.image(case)))
            found[case.id] = confusion(mask, index.label(case).ravel(), len(index.classes.names)).tolist()
        write_text(file, json.dumps(found))
    return {name: np.array(rows) for name, rows in json.loads(file.read_text()).items()}


def _features(image: np.ndarray) -> np.ndarray:
    """(H W, F)."""
    found = multiscale_basic_features(image, intensity=True, edges=True, texture=True, sigma_min=1, sigma_max=16)
    return found.reshape(-1, found.shape[-1])


def _table(
    name: str, stacked: Mapping[str, np.ndarray], groups: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of (S, N, K, K) counts by method: mean IoU, and the network's gain, with intervals over specimens."""
    _, which = np.unique(groups, return_inverse=True)
    num = which.max() + 1
    summed = {}
    for method, counts in {**stacked, "majority": _majority(stacked["network"])}.items():
        summed[method] = np.zeros((len(counts), num, *counts.shape[2:]))
        np.add.at(summed[method], (slice(None), which), counts)
    draws = np.random.default_rng([0, 0, 0, 0]).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES)
    drawn = {method: mean_iou(np.tensordot(draws, counts, (1, 1))).mean(1) for method, counts in summed.items()}
    whole = {method: float(mean_iou(counts.sum(1)).mean()) for method, counts in summed.items()}
    rows = [_row(f"{name} {method}", whole[method], drawn[method]) for method in summed]
    for row, method in zip(rows, summed, strict=True):
        scores = np.mean([per_class(counts.sum(0))["iou"] for counts in summed[method]], axis=0)
        row |= dict(zip(classes, scores.tolist(), strict=True))
    return rows + [
        _row(f"{name} network - {other}", whole["network"] - whole[other], drawn["network"] - drawn[other])
        for other in ("forest", "balanced forest", "majority")
    ]


def _majority(counts: np.ndarray) -> np.ndarray:
    """What one class everywhere would have, the commonest of all pictures."""
    best = int(counts.sum((0, 1, 3)).argmax())
    alone = np.zeros_like(counts)
    alone[..., best] = counts.sum(3)
    return alone


def _row(name: str, value: float, drawn: np.ndarray) -> dict[str, Any]:
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {"what": name, "miou": value, "low": float(low), "high": float(high)}


def one(protocol: Protocol, out: Path) -> list[dict[str, Any]]:
    """A single label: a row each for what was tried, and the gains."""
    index = indexed("super", out)
    scores: dict[str, list[float]] = {}
    for draw in range(protocol.draws):
        divided = _with_one_label(index, draw)
        file = out / "indices" / f"one_{draw}.json"
        divided.write(file)
        for method, found in _methods(file, divided, draw, protocol, out / "cells" / f"one_{draw}").items():
            scores.setdefault(method, []).append(float(mean_iou(np.sum(list(found.values()), axis=0))))
    rows = [_spread(name, values) for name, values in scores.items()]
    for first, second in (
        ("pretrained", "scratch"), ("pseudo", "longer"), ("pseudo", "scratch"), ("scratch", "forest")
    ):  # fmt: skip
        gaps = np.subtract(scores[first], scores[second])
        rows.append(_spread(f"{first} - {second}", gaps.tolist()))
    return rows


def _with_one_label(index: Index, draw: int) -> Index:
    """Two specimens to be tested, one other picture with its label, and the rest as a pool."""
    names = sorted({case.unit for case in index.cases})
    test = {names[(2 * draw) % len(names)], names[(2 * draw + 1 + draw // 3) % len(names)]}
    rest = [case for case in index.cases if case.unit not in test]
    chosen = rest[int(np.random.default_rng([draw, 1, 0, 0]).integers(len(rest)))].id
    cases = []
    for case in index.cases:
        if case.unit in test or case.id == chosen:
            cases.append(replace(case, split="test" if case.unit in test else "train"))
        else:
            notes = {name: value for name, value in case.notes.items() if name != "shares"}
            cases.append(Case(case.id, {"image": case.files["image"]}, case.group, "", notes))
    return replace(index, cases=tuple(cases))


def _methods(file: Path, index: Index, draw: int, protocol: Protocol, cell: Path) -> dict[str, dict[str, np.ndarray]]:
    budget, width = {**protocol.budget("super", draw), "epochs": protocol.epochs_of_one}, protocol.width
    seg = SegConfig(**budget, width=width)
    ssl, scratch = cell / "ssl", cell / "scratch" / "run"

    def after_ssl() -> Result:
        pretrain(file, ssl, PretrainConfig(**budget, width=width), resume="last")
        return train(file, cell / "pretrained" / "run", seg, start=Start(encoder_init=ssl), resume="last")

    makers = {
        "scratch": lambda: train(file, scratch, seg, resume="last"),
        "pretrained": after_ssl,
        "longer": lambda: train(file, cell / "longer" / "run", seg, start=Start(init=scratch), resume="last"),
        "pseudo": lambda: pseudo(file, cell / "pseudo" / "run", PseudoConfig(**budget), model=scratch, resume="last"),
    }
    found = {name: _cell(cell / name, index, make) for name, make in makers.items()}
    return {**found, "forest": _forest(cell, index, draw)}


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Mean, and the ends of its 95 % interval by Student's t."""
    found = spread(np.array(values))
    return {"what": name, "miou": found["mean"], "low": found["low"], "high": found["high"]}


if __name__ == "__main__":
    main()
