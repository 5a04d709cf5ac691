"""From micrographs to masks of their own size, and to what people measure on them; the network is loaded once.

OUT/masks/X.png       ids; 255 where the instrument wrote
OUT/colours/X.png     the same in the colours of the training masks, OUT/overlays/X.png over the picture
OUT/particles/X.csv   a row for each particle
OUT/phases.csv, contacts.csv, summary.csv, phases.png   of all pictures
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from medseg_core import figures
from medseg_core.cases import Case
from medseg_core.checkpoint import digest
from medseg_core.cohort import JOURNAL, Outcome, answers, clear_journal, for_each
from medseg_core.config import as_dict
from medseg_core.device import choose_device
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.io import case_name, is_picture, write_picture
from medseg_core.table import write_csv
from medseg_core.volume import Picture
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.images import banner_of, read_grey
from medseg_sem_al.measures import contacts, fraction_interval, interval_within, particles, phases
from medseg_sem_al.panels import overlaid, painted
from medseg_sem_al.settings import PredictConfig, TileConfig
from medseg_sem_al.sources import find_micrographs, pictures_in
from medseg_sem_al.stacks import MIDDLE, read_stack, with_neighbours
from medseg_sem_al.train import depth_of, load_segmenter, logits_of

log = logging.getLogger(__name__)


class Predictor:
    """The network of a run, held in memory.

    Args:
        run: of `train`, or its weights file.

    Raises:
        MedsegError: no such run, or weights that make no classes.
    """

    def __init__(self, run: Path, config: TileConfig | None = None) -> None:
        self.config = config or TileConfig()
        net, self.card = load_segmenter(run)
        self.net = net.to(choose_device(self.config.device))
        self.names = [self.card.labels[k] for k in sorted(self.card.labels)]
        self.colours = self.card.chosen["colours"]
        self.depth = depth_of(self.card)

    def mask(self, image: np.ndarray) -> np.ndarray:
        """(H, W) uint8 ids of (D, H, W) values in [0, 1]: of the picture in the middle."""
        return logits_of(self.net, image, self.card, self.config).argmax(0).astype(np.uint8)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(K, H, W) float32 of (D, H, W) values in [0, 1]."""
        return torch.from_numpy(logits_of(self.net, image, self.card, self.config)).softmax(0).numpy()


def predict_files(
    images: Path, run: Path, out: Path, config: PredictConfig | None = None, *, overwrite: bool = False
) -> Outcome:
    """Writes masks, and what is measured on them; what is there already is kept.

    Args:
        images: a folder that `find_micrographs` knows, or a picture.

    Raises:
        MedsegError: nothing to predict, no such run, or a folder with something else.
    """
    out, config = Path(out), config or PredictConfig()
    predictor = Predictor(run, config)
    cases, left_out = find_inputs(images, predictor.depth)
    from_first(partial(_check_out, out, Path(images), cases, overwrite=overwrite))
    if overwrite:
        from_first(partial(clear_journal, out))
    settings = {**as_dict(config), "weights": digest(run)}
    outcome = for_each(
        cases, partial(_write, predictor=predictor, config=config, out=out), out=out, config=settings, again=True
    )
    known = [case.id for case in cases if case.id not in outcome.failed]
    from_first(partial(_write_tables, out, known, predictor.names))
    return replace(outcome, failed={**left_out, **outcome.failed})


def find_inputs(images: Path, depth: int = 1) -> tuple[list[Case], dict[str, str]]:
    """A case for each picture, and why others are none, by their names.

    Args:
        depth: frames of a stack, which are neighbours by their names; those of a single picture lie beside it.

    Raises:
        MedsegError: no picture.
    """
    images = Path(images)
    if images.is_file():
        if not is_picture(images):
            raise MedsegError(f"{images} is no PNG, TIFF or JPEG; convert it")
        paths = {images} if depth == 1 else {images, *pictures_in(images.parent)}
        cases = with_neighbours([Case(case_name(path), {MIDDLE: path}) for path in paths], depth)
        return [case for case in cases if case.files[MIDDLE] == images], {}
    found = find_micrographs(images)
    left_out = {finding["case"]: finding["text"] for finding in found.findings if finding["severity"] == "error"}
    for name, why in left_out.items():
        log.error("%s: %s", name, why)
    if not found.cases:
        why = "; ".join(left_out.values()) or "give a folder of micrographs, or one of them"
        raise MedsegError(f"{images} holds no picture to predict; {why}")
    bare = [Case(case.id, {role: case.files[role] for role in case.files if role != "label"}) for case in found.cases]
    return with_neighbours(bare, depth, [case.notes["dataset"] for case in found.cases]), left_out


def _check_out(out: Path, images: Path, cases: Sequence[Case], *, overwrite: bool) -> None:
    """Nothing that was read is written over or read again, and other people's files only when that was asked for."""
    homes = {case.files["image"].parent.resolve() for case in cases}
    if homes & {out.resolve(), *((out / name).resolve() for name in ("masks", "colours", "overlays"))}:
        raise MedsegError(f"{out} holds what is to be predicted; choose another --out")
    if images.is_dir() and out.resolve().parent == images.resolve():  # the next call would find phases.png
        raise MedsegError(f"{out} lies among the pictures of {images}; choose an --out beside them")
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file() and not overwrite:
        raise MedsegError(f"{out} is not empty and was not begun by predict; choose another --out, or add --overwrite")


def _write(case: Case, *, predictor: Predictor, config: PredictConfig, out: Path) -> Mapping[str, Any]:
    """Pictures of a case, its particles, and the rows of the other tables."""
    middle = case.files[MIDDLE]
    grey, pixel_nm, _ = read_grey(middle)
    stack = read_stack(case, predictor.depth, lambda file: grey if file == middle else _frame(file, grey))
    names = predictor.names
    pixel_nm = pixel_nm or config.pixel_nm or None
    cut = banner_of(grey) if config.banner < 0 else config.banner
    if cut >= len(grey):
        raise MedsegError(f"{case.id} has {len(grey)} rows, and {cut} are to be cut; set --banner")
    ids = np.full(grey.shape, UNSEEN, np.uint8)
    ids[: len(grey) - cut] = predictor.mask(stack[:, : len(grey) - cut])
    found = particles(ids, names, pixel_nm=pixel_nm)
    write_csv(out / "particles" / f"{case.id}.csv", found, list(found[0]) if found else ["class"])
    shown = {
        "masks": ids,
        "colours": painted(ids, predictor.colours),
        "overlays": overlaid(grey, ids, predictor.colours),
    }
    for folder, pixels in shown.items():
        write_picture(Picture(pixels), out / folder / f"{case.id}.png")
    within = {row["class"]: row for row in interval_within(ids, names)}
    rows = [
        {**row, "share_low": within[row["class"]]["low"], "share_high": within[row["class"]]["high"]}
        for row in phases(ids, names, pixel_nm=pixel_nm)
    ]
    return {"phases": rows, "contacts": contacts(ids, names, pixel_nm=pixel_nm), "num_seen": int((ids != UNSEEN).sum())}


def _frame(file: Path, grey: np.ndarray) -> np.ndarray:
    """A neighbour, or the picture itself where that is damaged or of another size."""
    try:
        frame, _, _ = read_grey(file)
        if frame.shape == grey.shape:
            return frame
        why = f"{file} is of another size"
    except MedsegError as error:
        why = str(error)
    log.warning("%s; the picture beside it is seen without it", why)
    return grey


def _write_tables(out: Path, cases: Sequence[str], names: Sequence[str]) -> None:
    """The tables of all pictures that were asked for, from what the journal knows."""
    known = {case: answer for case, answer in answers(out) if case in set(cases) and "phases" in answer}
    if not known:
        return
    for word in ("phases", "contacts"):
        rows = [{"image": case, **row} for case, answer in known.items() for row in answer[word]]
        write_csv(out / f"{word}.csv", rows, list(dict.fromkeys(name for row in rows for name in row)))
    shares = np.array([[row["share"] for row in answer["phases"]] for answer in known.values()])
    areas = np.array([answer["num_seen"] for answer in known.values()], float)
    rows = fraction_interval(shares, areas, names=names)
    write_csv(out / "summary.csv", rows, list(rows[0]))
    figures.save(_drawn(shares, rows), out / "phases.png")


def _drawn(shares: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A dot for each picture, and the mean with its interval."""
    figure = Figure(figsize=(1.5 + 1.3 * len(rows), 3.4), layout="constrained")
    axes = figure.subplots()
    for k, row in enumerate(rows):
        spread = np.linspace(-0.18, 0.18, len(shares)) if len(shares) > 1 else np.zeros(1)
        axes.scatter(k + spread, 100 * shares[:, k], s=14, alpha=0.6, color="tab:blue")
        axes.hlines(100 * row["share"], k - 0.3, k + 0.3, color="black")
        if np.isfinite(row["low"]):
            axes.vlines(k, 100 * row["low"], 100 * row["high"], color="black")
    axes.set_xticks(range(len(rows)), [row["class"] for row in rows])
    axes.set_ylabel("share of pixels, %")
    axes.set_title(f"{len(shares)} pictures, mean and its 95 % interval", fontsize=9)
    figures.plain(axes)
    return figure
