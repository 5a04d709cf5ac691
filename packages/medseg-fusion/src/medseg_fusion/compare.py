"""Networks at equal budget, and whether fusion helps: the same folds of patients, slices and updates for all.

OUT/folds/0.json             {seed, unit, train, val, test}: each patient is tested once
OUT/cells/<net>_<fold>_<seed>/   a run of `train` and `scores.json`, a row for each tested patient; a call that was
                             stopped goes on with the first cell that is missing
OUT/comparison.json, patients.csv, misregistration.png, report.html
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_core.cases import Case, write_split
from medseg_core.config import as_dict, strict
from medseg_core.device import choose_device
from medseg_core.errors import MedsegError, meant
from medseg_core.evaluate import Evaluation, evaluate, from_rows
from medseg_core.io import write_text
from medseg_core.pairs import Pair
from medseg_core.report import write_report
from medseg_core.run import read_json
from medseg_core.store import Arrays
from medseg_core.table import write_csv
from medseg_fusion.evaluate import MEASURES, pair_of
from medseg_fusion.measures import thresholds
from medseg_fusion.misregistration import curve, draw, means
from medseg_fusion.models import MODELS
from medseg_fusion.models.vgg import vgg_weights
from medseg_fusion.patients import BITS
from medseg_fusion.predict import Predictor
from medseg_fusion.prepare import read_cohort
from medseg_fusion.settings import CompareConfig, FusionConfig, PredictConfig
from medseg_fusion.train import train

SINGLE = ("ct", "pet")
BOTH = "both"
KNOWN = (*(name for name in MODELS if name != "single"), *SINGLE)
LEVEL = 0.05
SETTINGS, SCORES, MOVED = "settings.json", "scores.json", "misregistration.json"


def compare(cache: Path, out: Path, config: CompareConfig) -> dict[str, Any]:
    """Trains and scores what is missing, and says which network is better than which, by how much, and how surely.

    Every network gets the same patients, epochs, batches, losses and threshold rule; the threshold is chosen on the
    validation patients of its fold, never on the tested ones. Dice is averaged over the seeds for each patient with
    tumour, and intervals and tests are over these. Patients without tumour have no Dice; what is found in them is told.

    Args:
        cache: what `prepare` made.
        out: new, or begun with the same settings.

    Raises:
        MedsegError: unknown nets, fewer patients than folds, or a folder that was begun with other settings.
    """
    out = Path(out)
    for net in config.nets:
        if net not in KNOWN:
            raise MedsegError(f"there is no net {net!r}{meant(net, KNOWN)}; take of {', '.join(KNOWN)}")
    cases = [case for case in read_cohort(cache) if "label" in Arrays(case.files["arrays"]).names]
    num = len({case.unit for case in cases})
    least = 2 if config.val_ratio else 1  # to train on and to choose by, beside those that are tested
    if num < max(config.folds, 3) or num - math.ceil(num / config.folds) < least:
        raise MedsegError(f"{num} patients with masks are too few for {config.folds} folds; set --folds")
    choose_device(config.device)
    vgg_weights(config.vgg)
    if not any(case.notes.get("tumour_share") for case in cases):
        raise MedsegError(f"no mask of {cache} has tumour: there is no Dice to compare")
    _check_begun(out, cases, config)
    rows, moved, seconds = [], {}, {}
    for fold, split in enumerate(_folds(cases, out, config)):
        for seed, net in product(dict.fromkeys(config.seeds), dict.fromkeys(config.nets)):
            cell = out / "cells" / f"{net}_{fold}_{seed}"
            found = _cell(cell, cache, split, cases, net, seed, config)
            rows += [{**row, "net": net, "seed": seed} for row in found]
            seconds.setdefault(net, []).append(_seconds(cell / "run"))
            if config.misregistration and net not in SINGLE:
                moved.setdefault(net, []).extend(_moved(cell, split, cases, config))
    rivals = _thresholds(cases)
    nets = _averaged(rows)
    scored = {**nets, **{name: list(filter(_is_ill, some)) for name, some in rivals.items()}}
    told = _told(scored, list(nets), config, {net: statistics.median(some) for net, some in seconds.items()})
    told["without_tumour"] = _without_tumour(
        [*rows, *({**row, "net": name} for name, some in rivals.items() for row in some)]
    )
    told["misregistration"] = {net: means(some) for net, some in moved.items()}
    _write(out, told, rows, scored, list(nets))
    return told


def verdict(entry: Mapping[str, float]) -> str:
    """Of a paired difference: its interval leaves out 0, and Wilcoxon's test agrees, which five patients cannot do."""
    if not entry["p"] < LEVEL or entry["low"] <= 0 <= entry["high"]:
        return "no evidence of gain"
    return "gain" if entry["low"] > 0 else "loss"


def settings_of(net: str, seed: int, config: CompareConfig) -> FusionConfig:
    """How a cell is trained."""
    shared = {field.name: getattr(config, field.name) for field in fields(FusionConfig) if hasattr(config, field.name)}
    which = {"net": "single", "modality": net} if net in SINGLE else {"net": net}
    alone = {"drop_chance": 0.0} if net in SINGLE else {}  # without its one modality a sample teaches nothing
    return FusionConfig(**{**shared, **which, **alone, "seed": seed})


def _check_begun(out: Path, cases: Sequence[Case], config: CompareConfig) -> None:
    """Cells of one folder are of the same patients, and alike but for nets, seeds and what changes no result."""
    may = {"nets", "seeds", "misregistration", "num_workers", "device", "save_seconds", "keep"}
    now = {name: value for name, value in as_dict(config).items() if name not in may}
    now["patients"] = sorted([case.id, case.notes.get("tumour_share")] for case in cases)
    now, file = json.loads(json.dumps(now)), out / SETTINGS
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise MedsegError(f"{out} is not empty and was not begun by compare; choose another --out")
        write_text(file, json.dumps(now, indent=1) + "\n")
    begun = read_json(file)
    if begun.pop("patients", None) != now.pop("patients"):
        raise MedsegError(f"{out} was begun with other patients; choose another --out")
    if wrong := [name for name in now if begun.get(name) != now[name]]:
        said = f"{out} was begun with {wrong[0]} {begun.get(wrong[0])}, and now it is {now[wrong[0]]}"
        raise MedsegError(f"{said}; choose another --out")


def _folds(cases: Sequence[Case], out: Path, config: CompareConfig) -> list[Path]:
    """A split file for each fold: its patients are tested, of the others some choose epoch and threshold."""
    names = sorted({case.unit for case in cases})
    order = np.random.default_rng([config.seed, 0, 0, 0]).permutation(names).tolist()
    files = []
    for fold in range(config.folds):
        test, rest = order[fold :: config.folds], [name for name in order if name not in order[fold :: config.folds]]
        val = rest[: max(1, round(config.val_ratio * len(rest)))] if config.val_ratio else []
        parts = {**dict.fromkeys(rest, "train"), **dict.fromkeys(val, "val"), **dict.fromkeys(test, "test")}
        chosen = [Case(case.id, case.files, case.group, parts[case.unit]) for case in cases]
        files.append(out / "folds" / f"{fold}.json")
        write_split(files[-1], chosen, seed=config.seed)
    return files


def _cell(
    cell: Path, cache: Path, split: Path, cases: Sequence[Case], net: str, seed: int, config: CompareConfig
) -> list[dict[str, Any]]:
    """Rows of a cell, made where there are none."""
    file = cell / SCORES
    if not file.is_file():
        result = train(cache, cell / "run", settings_of(net, seed, config), splits=split, resume="last")
        if result.reason == "stopped":
            raise MedsegError("stopped; the same call goes on")
        rows = _scored(_tested(cases, split), cell / "run", net, config)
        write_text(file, json.dumps(strict(rows)) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def _moved(cell: Path, split: Path, cases: Sequence[Case], config: CompareConfig) -> list[dict[str, Any]]:
    """Rows of a cell with PET moved, made where there are none."""
    file = cell / MOVED
    if not file.is_file():
        predictor = Predictor(cell / "run", PredictConfig(device=config.device))
        rows = list(curve(_tested(cases, split), predictor))
        write_text(file, json.dumps(rows) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def _tested(cases: Sequence[Case], split: Path) -> list[Case]:
    names = set(read_json(split)["test"])
    return [case for case in cases if case.id in names]


def _scored(cases: Sequence[Case], run: Path, net: str, config: CompareConfig) -> list[dict[str, Any]]:
    """With both modalities, and with either alone where the network was trained for that."""
    predictor = Predictor(run, PredictConfig(device=config.device))
    inputs = {BOTH: (True, True)}
    if config.drop_chance and net not in SINGLE:
        inputs |= {"ct": (True, False), "pet": (False, True)}
    rows = []
    for name, present in inputs.items():
        pairs = (pair_of(case, predictor, present=present) for case in cases)
        found = evaluate(pairs, {1: "tumour"}, measures=MEASURES)
        rows += [{**row, "inputs": name} for row in (*found.rows, *found.absent)]
    return rows


def _seconds(run: Path) -> float:
    """Of an epoch, the median."""
    lines = (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    return statistics.median(json.loads(line)["seconds"] for line in lines)


def _told(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    nets: Sequence[str],
    config: CompareConfig,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Means, paired differences with their intervals and what follows of them."""
    scored = {name: from_rows(some) for name, some in rows.items()}
    overall = {name: _overall(one) for name, one in scored.items()}
    differences = []
    for one, other in combinations(scored, 2):
        if one not in nets:
            continue
        entry = scored[one].against(scored[other], "dice")
        differences.append({"one": one, "other": other, **entry, "verdict": verdict(entry)})
    cost = {net: {**_size(settings_of(net, 0, config)), "epoch_s": seconds[net]} for net in config.nets}
    return {"settings": as_dict(config), "dice": overall, "differences": differences, "cost": cost}


def _size(config: FusionConfig) -> dict[str, int]:
    """Parameters of a network, of which nothing is held."""
    with torch.device("meta"):
        sizes = [(p.numel(), p.requires_grad) for p in MODELS[config.net](width=config.width).parameters()]
    return {"trainable": sum(num for num, learns in sizes if learns), "total": sum(num for num, _ in sizes)}


def _averaged(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Network, and what it was given where that is not both -> a row per patient with tumour, the mean of the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in filter(_is_ill, rows):
        found.setdefault(_name(row), {}).setdefault(row["case"], []).append(row["dice"])
    about = {"label": 1, "name": "tumour"}
    return {
        name: [
            {"case": case, **about, "status": "both" if any(values) else "missed", "dice": float(np.mean(values))}
            for case, values in by_case.items()
        ]
        for name, by_case in found.items()
    }


def _without_tumour(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each network and threshold: how often it was asked about such patients, how often it found something there."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if not _is_ill(row):
            found.setdefault(_name(row), []).append(row)
    told = {}
    for name, some in found.items():
        invented = [row for row in some if row["status"] == "invented"]
        told[name] = {"asked": len(some), "invented": len(invented)}
        if all("volume_pred_ml" in row for row in invented):  # pictures have no ml
            told[name]["invented_ml"] = sum(row["volume_pred_ml"] for row in invented) / len(some)
    return told


def _is_ill(row: Mapping[str, Any]) -> bool:
    """Whether a patient has tumour."""
    return row["status"] in ("both", "missed")


def _name(row: Mapping[str, Any]) -> str:
    return row["net"] if row.get("inputs", BOTH) == BOTH else f"{row['net']}, {row['inputs']} alone"


def _thresholds(cases: Sequence[Case]) -> dict[str, list[dict[str, Any]]]:
    """Plain thresholds of SUV on the same patients, a row for each."""
    arrays = {case.id: Arrays(case.files["arrays"]) for case in cases}
    units = {one.about["unit"] for one in arrays.values()}
    if BITS in units:
        return {}
    pairs = (
        Pair(
            name,
            np.zeros(one["label"].shape, np.uint8),
            np.asarray(one["label"]),
            tuple(one.about["spacing"]),
            images={"pet": np.asarray(one["pet"])},
        )
        for name, one in arrays.items()
    )
    found = evaluate(pairs, {1: "tumour"}, baselines=thresholds("HU and SUV"), measures=("overlap",))
    return {name: [*one.rows, *one.absent] for name, one in found.baselines.items() if name != "empty"}


def _overall(evaluation: Evaluation) -> dict[str, float]:
    rows = (row for row in evaluation.summary() if (row["kind"], row["measure"]) == ("all", "dice"))
    row = next(rows, {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0})
    return {name: row[name] for name in ("mean", "low", "high", "n")}


def _write(
    out: Path,
    told: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    scored: Mapping[str, Sequence[Mapping[str, Any]]],
    nets: Sequence[str],
) -> None:
    write_text(out / "comparison.json", json.dumps(strict(dict(told)), indent=1) + "\n")
    columns = list(dict.fromkeys(["net", "seed", "inputs", "case", *(name for row in rows for name in row)]))
    write_csv(out / "patients.csv", rows, columns)
    first, *others = scored
    flat = [*scored[first], *({**row, "model": name} for name in others for row in scored[name])]
    curves = told["misregistration"]
    pictures = [draw(curves, out / "misregistration.png")] if curves else []
    title = " beside ".join(filter(None, (first, "; ".join(nets[1:]))))
    write_report(out, from_rows(flat), title=title, notes=_notes(told, nets), pictures=pictures)


def _notes(told: Mapping[str, Any], nets: Sequence[str]) -> list[str]:
    """Networks against each other and against the last of what has no network, and what is found where nothing is."""
    last = list(told["dice"])[-1]
    notes = [
        f"{entry['one']} against {entry['other']}: {entry['difference']:+.3f} Dice [{entry['low']:+.3f}, "
        f"{entry['high']:+.3f}] over {entry['n_cases']} patients, {entry['verdict']}."
        for entry in told["differences"]
        if entry["other"] in (*nets, last)
    ]
    bare = []
    for name, row in told["without_tumour"].items():
        ml = f" ({row['invented_ml']:.1f} ml a patient)" if "invented_ml" in row else ""
        bare.append(f"{name} {row['invented']} of {row['asked']} times{ml}")
    return [*notes, f"In patients without tumour something was found by: {'; '.join(bare)}."] if bare else notes
