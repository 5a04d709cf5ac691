"""Learning an encoder from pictures without labels, and looking at what it learnt."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg_core.augment import recipe
from medseg_core.cases import Case, keep_split, read_split, split_cases
from medseg_core.checkpoint import Card, load_model
from medseg_core.config import resolve, strict
from medseg_core.device import choose_device
from medseg_core.distributed import from_first
from medseg_core.draw import Samples
from medseg_core.errors import MedsegError
from medseg_core.io import write_picture, write_text
from medseg_core.run import SETTINGS, RunFolder
from medseg_core.table import write_csv
from medseg_core.trainer import Result, Step, Trainer, Validate
from medseg_core.volume import Picture
from medseg_sem_al import __version__
from medseg_sem_al.held import Reconstruction, Retrieval, nearest
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.models.original import WIDTHS
from medseg_sem_al.models.pretraining import METHODS
from medseg_sem_al.objectives import Agreement, MaskedPixels, MaskedTokens
from medseg_sem_al.panels import beside
from medseg_sem_al.samples import Windows, intensity_of, standardised
from medseg_sem_al.settings import PretrainConfig
from medseg_sem_al.views import Views, Window, centre, tiles

PACKAGE = "medseg-sem-al"
HIDDEN_COLOUR = (70, 80, 130)
ERROR_GAIN = 2  # of the error in a panel: half of the range is white
NEIGHBOURS, MOST_TILES = 3, 4  # of a query; windows of a picture along each axis
TABLE, SUMMARY = "inspect.csv", "inspect.json"

log = logging.getLogger(__name__)


def pretrain(
    index_file: Path, out: Path, config: PretrainConfig, *, resume: str = "", overwrite: bool = False
) -> Result:
    """Fits an encoder to all pictures, with and without labels, and leaves a run folder.

    Pictures of a group that is tested on are not looked at, labelled or not. Of the other groups a share is held out,
    whatever part of the labels they are in; which, stands in the run's split.json.

    Args:
        index_file: what `index` made.
        resume: "last" goes on, a path goes on from a kept checkpoint, "" begins.

    Raises:
        MedsegError: nothing to learn from, settings that do not fit each other, a folder in use.
    """
    index = read_index(index_file)
    cases = divided(index, config, index_file)
    parts = {part: [case for case in cases if case.split == part] for part in ("train", "val", "test")}
    card = card_of(parts["train"], config, index.depth)
    choose_device(config.device)
    torch.manual_seed(config.seed)
    model = METHODS[card.model](**card.arguments)
    _check(model, config)
    run = RunFolder.open(out, config, resume=resume, overwrite=overwrite, inputs=(index_file,))
    with run.held():
        from_first(partial(keep_split, run.path / "split.json", cases, seed=config.seed))
        samples, step = samples_of(index, parts["train"], card, config), step_of(card, config)
        log.info(
            "%d windows of %d pictures; %d are held out, %d are not looked at, as they are for testing",
            *(len(samples), len(parts["train"]), len(parts["val"]), len(parts["test"])),
        )
        validate = _validation(index, parts["val"], card, config, model) if parts["val"] else None
        return Trainer(model, step, config=config, card=card, run=run).fit(samples, validate)


def divided(index: Index, config: PretrainConfig, where: Path) -> list[Case]:
    """All cases: "test" those of groups with a picture that is tested on, "val" those held out, "train" the rest.

    Raises:
        MedsegError: nothing is left to learn from.
    """
    tested = {case.unit for case in index.cases if case.split == "test"}
    rest = [replace(case, split="") for case in index.cases if case.unit not in tested]
    if not rest:
        raise MedsegError(f"all {len(index.cases)} pictures of {where} are for testing; add others, and index again")
    aside: list[Case] = [replace(case, split="test") for case in index.cases if case.unit in tested]
    return [*split_cases(rest, val=config.held, seed=config.seed), *aside]


def card_of(cases: list[Case], config: PretrainConfig, depth: int = 1) -> Card:
    """What the weights are, and how values are scaled for them."""
    arguments: dict[str, Any] = {"in_channels": depth, "num_classes": depth, "encoder": config.encoder}
    if config.method != "mae":
        arguments["width"] = WIDTHS[0] if config.encoder == "six_levels" else config.width
    if config.method == "autoencoder":
        arguments["patch"] = config.patch
    if config.method == "dino":
        arguments["num_classes"] = config.num_prototypes
    return Card(
        package=PACKAGE,
        version=__version__,
        model=config.method,
        arguments=arguments,
        inputs=("sem",),
        head="none",
        intensity=intensity_of(cases),
    )


def samples_of(index: Index, cases: list[Case], card: Card, config: PretrainConfig) -> Samples:
    """What is trained on."""
    how: dict[str, Any] = {"size": config.size, "intensity": dict(card.intensity), "how": recipe(config)}
    how["num_samples"] = config.epoch_windows
    if config.method == "dino":
        return Views(index, cases, num_small=config.num_small, **how)
    return Windows(index, cases, **how)


def step_of(card: Card, config: PretrainConfig) -> Step:
    """What is minimised."""
    if config.method == "mae":
        return MaskedTokens(config.hidden)
    if config.method == "autoencoder":
        return MaskedPixels(config.hidden, config.ssim_weight, card.intensity)
    return Agreement()


def inspect(run: Path, index_file: Path, out: Path) -> Mapping[str, Any]:
    """Shows what a run makes of the pictures that it held out.

    Writes inspect.csv and inspect.json, and a panel of each picture below pictures/: of mae and autoencoder the middle
    of the picture | what was seen of it | what was made of that | twice the error; of dino a window | the three
    windows that are most like it.

    Args:
        index_file: of which the run was begun.

    Returns:
        The numbers of inspect.json without its rows: means over pictures.

    Raises:
        MedsegError: no run of pre-training, no pictures held out, or a folder that holds something else.
    """
    run, out = Path(run), Path(out)
    model, card = load_model(run, METHODS)
    config = resolve(PretrainConfig, file=run / SETTINGS)
    held = [case for case in read_split(run / "split.json", read_index(index_file).cases) if case.split == "val"]
    if not held:
        raise MedsegError(f"{run} held no pictures out; there is nothing to look at. Pre-train with --held 0.2")
    if out.is_dir() and any(out.iterdir()) and not (out / SUMMARY).is_file():
        raise MedsegError(f"{out} holds something else; choose a new folder")
    model = model.to(choose_device(config.device))
    shown = _neighbours if card.model == "dino" else _reconstructions
    rows, told = shown(model, read_index(index_file), held, card, config, out / "pictures")
    write_csv(out / TABLE, rows, list(dict.fromkeys(name for row in rows for name in row)))
    told = {"method": card.model, "pictures": len(held), **told}
    write_text(out / SUMMARY, json.dumps(strict({**told, "rows": rows}), indent=1, ensure_ascii=False) + "\n")
    return told


def _check(model: nn.Module, config: PretrainConfig) -> None:
    if config.method == "dino":
        if not config.ema:
            raise MedsegError("dino's teacher is the average of the student, and --ema 0 has none; try --ema 0.99")
        return
    multiple = int(model.multiple)
    if config.size % multiple or config.size < 2 * model.patch:
        fixed = max(round(config.size / multiple), -(-2 * model.patch // multiple)) * multiple
        raise MedsegError(f"--size {config.size} must be a multiple of {multiple}, two patches at least; try {fixed}")


def _validation(index: Index, held: list[Case], card: Card, config: PretrainConfig, model: nn.Module) -> Validate:
    if config.method != "dino":
        return _reconstruction(index, held, card, config, model)
    how: dict[str, Any] = {"intensity": dict(card.intensity), "how": recipe(config)}
    return Retrieval(Views(index, held, size=config.size, num_small=0, **how), seed=config.seed, start=model)


def _reconstruction(
    index: Index, held: list[Case], card: Card, config: PretrainConfig, model: nn.Module
) -> Reconstruction:
    multiple, patch = int(model.multiple), int(model.patch)
    windows = [centre(index, case, config.size, max(multiple, 2 * patch)) for case in held]
    how: dict[str, Any] = {"share": config.hidden, "patch": patch, "seed": config.seed}
    return Reconstruction(windows, intensity=dict(card.intensity), **how)


def _reconstructions(
    model: nn.Module, index: Index, held: list[Case], card: Card, config: PretrainConfig, out: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    judge = _reconstruction(index, held, card, config, model)
    rows = []
    for number, case in enumerate(held):
        made, values = judge.made(model, number), judge.values(number)
        rows.append({"case": case.id, **judge.judged(number, made), **judge.rows[number]})
        seen = np.where(judge.where(number)[..., None], np.uint8(HIDDEN_COLOUR), _grey(values))
        error = _grey(ERROR_GAIN * np.abs(made - values))
        write_picture(Picture(beside([_grey(values), seen, _grey(made), error])), out / f"{case.id}.png")
    return rows, {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "case"}


def _neighbours(
    model: nn.Module, index: Index, held: list[Case], card: Card, config: PretrainConfig, out: Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    windows = [window for case in held for window in tiles(index, case, config.size, most=MOST_TILES)]
    if len(windows) <= NEIGHBOURS:
        raise MedsegError(
            f"{len(windows)} windows of {config.size} pixels were held out; neighbours need more pictures"
        )
    device = next(model.parameters()).device
    with torch.inference_mode():
        scaled = [standardised(window.values, dict(card.intensity))[None] for window in windows]
        features_ND = torch.cat([model.pooled(torch.from_numpy(x).to(device)).float().cpu() for x in scaled])
    places, cosines = nearest(features_ND, NEIGHBOURS)
    rows = []
    for one, others, alike in zip(windows, places.tolist(), cosines.tolist(), strict=True):
        for rank, (other, cosine) in enumerate(zip((windows[k] for k in others), alike, strict=True), 1):
            near = {"rank": rank, "neighbour": other.case.id, "neighbour_row": other.row, "cosine": cosine}
            rows.append({"case": one.case.id, "row": one.row, "column": one.column, **near})
            rows[-1] |= {"neighbour_column": other.column, "same_picture": int(other.case.id == one.case.id)}
    for case in held:
        mine = [number for number, window in enumerate(windows) if window.case is case]
        middle = mine[len(mine) // 2]
        shown = [windows[number] for number in (middle, *places[middle].tolist())]
        write_picture(Picture(beside(_of_one_height(shown))), out / f"{case.id}.png")
    first = [row["same_picture"] for row in rows if row["rank"] == 1]
    return rows, {"windows": len(windows), "same_picture": float(np.mean(first)), "chance": _chance(windows)}


def _chance(windows: list[Window]) -> float:
    """How often a random other window is of the same picture."""
    counts = np.unique([window.case.id for window in windows], return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / (len(windows) * (len(windows) - 1)))


def _of_one_height(windows: list[Window]) -> list[np.ndarray]:
    tallest = max(window.values.shape[1] for window in windows)
    gaps = [((0, 0), (0, tallest - window.values.shape[1]), (0, 0)) for window in windows]
    return [_grey(np.pad(w.values, gap, constant_values=1.0)) for w, gap in zip(windows, gaps, strict=True)]


def _grey(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of the middle one of (C, H, W) in [0, 1]."""
    pixels = np.clip(np.rint(255 * values[len(values) // 2]), 0, 255).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, -1)
