"""From a CT of any orientation and spacing to a mask on its very grid; the network is loaded once."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_core.cases import Case
from medseg_core.checkpoint import Card, digest, load_model
from medseg_core.cohort import JOURNAL, Outcome, clear_journal, for_each
from medseg_core.config import as_dict
from medseg_core.device import choose_device, choose_precision
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.infer import Reduce, decide, entropy
from medseg_core.io import case_name, read_volume, write_volume
from medseg_core.stages import Stages
from medseg_core.volume import Grid, Volume, resample
from medseg_totalseg.inference import infer_volume, mirror_channels
from medseg_totalseg.labels import select, write_label_files
from medseg_totalseg.models import MODELS
from medseg_totalseg.settings import PredictConfig
from medseg_totalseg.slices import limits_of, normalise


@dataclass(frozen=True)
class Scan:
    """An image as the network sees it, (X, Y, Z) on `grid`, and the grid that it came from."""

    there: np.ndarray
    grid: Grid
    home: Grid


class Predictor:
    """The network of a run, or the mean of several, held in memory.

    >>> predictor = Predictor(Path("RUN"))
    >>> mask = predictor(voxels, affine)  # (X, Y, Z) HU and (4, 4) mm -> (X, Y, Z) label ids

    Args:
        runs: run folders or weights files; several are an ensemble, which averages probabilities. Networks of slices
            and of patches may stand together: then all see the same patches, in which those of slices lose context.
        config: settings of the prediction.

    Raises:
        MedsegError: no such run, weights of another package, or runs that do not belong together.
    """

    def __init__(self, *runs: Path, config: PredictConfig | None = None) -> None:
        self.config = config or PredictConfig()
        self.device = choose_device(self.config.device)
        self.precision = choose_precision(self.config.precision, self.device)
        loaded = [load_model(run, MODELS) for run in runs]
        self.cards = [card for _, card in loaded]
        self.card = _common_card(self.cards, runs)
        self.labels = select(self.card.labels, self.config.structures)
        if self.config.mirror != "none":
            mirror_channels(self.card)  # refuses before any scan is read
        self.nets = [net.to(self.device, memory_format=_layout(card)) for net, card in loaded]

    def __call__(self, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """(X, Y, Z) intensities in HU with their affine -> (X, Y, Z) label ids on the same grid."""
        return self.predict(Volume(voxels, affine)).voxels

    def predict(self, image: Volume) -> Volume:
        """The mask of label ids on the image's own grid."""
        scan = self.seen(image)
        return self.mask_of(self.infer(scan), scan)

    def predict_with_uncertainty(self, image: Volume) -> tuple[Volume, Volume]:
        """The mask, and how undecided the network is at each voxel: entropy from 0 (sure) to 1, float32."""
        scan = self.seen(image)
        both = self.infer_with_uncertainty(scan)
        return self.mask_of(both[0], scan), self.map_of(both[1], scan)

    def seen(self, image: Volume) -> Scan:
        """The image on the grid and in the intensities that the network was trained on."""
        if not np.isfinite(image.voxels.sum(dtype=np.float64)):
            raise MedsegError("the image holds voxels that are NaN or infinite; set them to -1024 first")
        grid = image.grid.oriented(self.card.grid["orientation"], tuple(self.card.grid["spacing_mm"]))
        return Scan(normalise(resample(image, grid).voxels, self.card.intensity), grid, image.grid)

    def infer(self, scan: Scan) -> np.ndarray:
        """(X, Y, Z) label ids on the scan's working grid."""
        return self._infer(scan, decide(self.card))

    def infer_with_uncertainty(self, scan: Scan) -> np.ndarray:
        """(2, X, Y, Z) float32: label ids and entropy on the scan's working grid."""
        ids, doubt = decide(self.card), entropy(self.card)
        return self._infer(scan, lambda y_KS: torch.stack([ids(y_KS).float(), doubt(y_KS)]))

    def mask_of(self, ids: np.ndarray, scan: Scan) -> Volume:
        """Label ids of the working grid on the one that the image came in on, without structures not asked for."""
        ids = ids.astype(np.uint8 if max(self.card.channels) < 2**8 else np.uint16, copy=False)
        if self.labels.keys() != self.card.labels.keys():
            keep = np.zeros(max(self.card.channels) + 1, ids.dtype)
            keep[list(self.labels)] = list(self.labels)
            ids = keep[ids]
        return resample(Volume(ids, scan.grid.affine), scan.home, how="label")

    def map_of(self, values: np.ndarray, scan: Scan) -> Volume:
        """Numbers of the working grid on the grid that the image came in on, 0 beyond it."""
        return resample(Volume(values, scan.grid.affine), scan.home, outside=0.0)

    def _infer(self, scan: Scan, reduce: Reduce) -> np.ndarray:
        config = self.config
        return infer_volume(
            self.nets,
            scan.there,
            self.cards,
            reduce=reduce,
            overlap=config.overlap,
            batch_size=config.batch_size,
            mirror=config.mirror,
            device=str(self.device),
            precision=self.precision,
        )


def predict_files(
    image: Path,
    models: Sequence[Path],
    out: Path,
    config: PredictConfig,
    *,
    only: Collection[str] | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Masks of one scan or of a folder of scans, as `out/<case>.nii.gz` or `out/<case>/<structure>.nii.gz`.

    Beside them lie labels.json, a label file for ITK-SNAP and a colour table for 3D Slicer. What the same call has
    finished before is skipped; a case that fails is told in the outcome and costs only itself. While a case is
    computed the next is read and the one before written; processes that torchrun started share the cases.

    Args:
        only: names of the cases to predict; None takes all.

    Raises:
        MedsegError: no scan, no such run, or an output folder that holds something else.
    """
    cases = [case for case in find_images(image) if only is None or case.id in only]
    from_first(partial(_check_out, out, cases, overwrite=overwrite))
    predictor = Predictor(*models, config=config)
    if overwrite:
        from_first(partial(clear_journal, out))
    weights = [digest(model) for model in models]
    outcome = for_each(cases, _stages(predictor, out), out=out, config={**as_dict(config), "weights": weights})
    from_first(partial(write_label_files, out, predictor.labels))
    return outcome


def find_images(path: Path) -> list[Case]:
    """The scans below `path`: the file itself, the released `s0000/ct.nii.gz`, or every NIfTI file of a folder."""
    path = Path(path)
    if path.is_file():
        files = [path]
    elif (path / "ct.nii.gz").is_file():
        files = [path / "ct.nii.gz"]
    else:
        files = sorted(path.glob("*/ct.nii.gz")) or sorted([*path.glob("*.nii.gz"), *path.glob("*.nii")])
    if not files:
        raise MedsegError(f"{path} holds no scan; give a .nii.gz file, or a folder of them or of s0000/ct.nii.gz")
    return [Case(id=_case_of(file), files={"ct": file}) for file in files]


def _check_out(out: Path, cases: Sequence[Case], *, overwrite: bool) -> None:
    """A scan is never written over, and other people's files only when that was asked for."""
    if any(case.files["ct"].resolve().parent == out.resolve() for case in cases):
        raise MedsegError(f"{out} holds the scans themselves; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file() and not overwrite:
        raise MedsegError(f"{out} is not empty and was not begun by predict; choose another --out, or add --overwrite")


def _case_of(file: Path) -> str:
    return file.resolve().parent.name if file.name == "ct.nii.gz" else case_name(file)


def _stages(predictor: Predictor, out: Path) -> Stages:
    """Reading, computing and writing a case, which overlap with those of its neighbours."""

    def read(case: Case) -> tuple[Scan, float]:
        begun = time.monotonic()
        scan = predictor.seen(read_volume(case.files["ct"]))
        return scan, time.monotonic() - begun

    def compute(_: Case, loaded: tuple[Scan, float]) -> tuple[np.ndarray, Scan, float]:
        scan, seconds = loaded
        begun = time.monotonic()
        answer = predictor.infer_with_uncertainty(scan) if predictor.config.uncertainty else predictor.infer(scan)
        return answer, replace(scan, there=np.empty((0, 0, 0), np.float32)), seconds + time.monotonic() - begun

    def write(case: Case, computed: tuple[np.ndarray, Scan, float]) -> Mapping[str, Any]:
        answer, scan, seconds = computed
        begun = time.monotonic()
        if predictor.config.uncertainty:
            write_volume(predictor.map_of(answer[1], scan), out / "uncertainty" / f"{case.id}.nii.gz")
            answer = answer[0]
        mask = predictor.mask_of(answer, scan)
        _write_mask(mask, case, predictor, out)
        found = [predictor.labels[i] for i in np.unique(mask.voxels).tolist() if i]
        return {"seconds": round(seconds + time.monotonic() - begun, 2), "structures": found}

    return Stages(read, compute, write)


def _write_mask(mask: Volume, case: Case, predictor: Predictor, out: Path) -> None:
    if predictor.config.format == "masks":
        for number, name in predictor.labels.items():
            one = mask.like((mask.voxels == number).astype(np.uint8))
            write_volume(one, out / case.id / f"{name}.nii.gz")
    else:
        write_volume(mask, out / f"{case.id}.nii.gz")


def _common_card(cards: Sequence[Card], runs: Sequence[Path]) -> Card:
    """The first card, where all runs answer the same question about the same voxels; nets and windows may differ."""
    for card, run in zip(cards, runs, strict=True):
        if card.package != "medseg-totalseg":
            raise MedsegError(f"{run} holds weights of {card.package}, not of medseg-totalseg; give a run of `train`")
        known = card.grid.keys()
        if not ({"orientation", "spacing_mm"} <= known and {"size", "patch"} & known and card.intensity):
            told = f"{run} does not say on which grid and intensities it was trained"
            raise MedsegError(f"{told}; import it again with --card, which names orientation, spacing_mm, size, window")
        _check_values(card, run)
    first = _question(cards[0])
    for card, run in zip(cards, runs, strict=True):
        for what, answer in _question(card).items():
            if answer != first[what]:
                raise MedsegError(f"{run} and {runs[0]} differ in {what}; an ensemble needs runs on the same data")
    return cards[0]


def _check_values(card: Card, run: Path) -> None:
    """What a damaged card, or one written by hand, would else break at the first scan or at the last line."""
    grid, edges = card.grid, card.grid.get("patch") or [card.grid.get("size")]
    try:
        Grid((1, 1, 1), np.eye(4)).oriented(grid["orientation"], tuple(float(mm) for mm in grid["spacing_mm"]))
        limits_of(np.zeros((1, 1, 1), np.int16), card.intensity)
        whole = all(isinstance(n, int) and n > 0 for n in (*edges, *card.arguments["widths"]))
        reason = "" if whole and len(edges) in (1, 3) else "an edge or a width is no whole number above 0"
        if unnamed := sorted(set(card.channels) - card.labels.keys() - {0}):
            reason = f"label {unnamed[0]} has no name"
    except MedsegError as error:
        reason = str(error)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"a value is missing or of another type ({error})"
    if reason:
        raise MedsegError(f"the card of {run} cannot be: {reason}; it was damaged, or import it again with --card")


def _question(card: Card) -> dict[str, Any]:
    asked = {name: getattr(card, name) for name in ("head", "channels", "labels", "intensity")}
    return {**asked, "orientation": card.grid["orientation"], "spacing": list(card.grid["spacing_mm"])}


def _layout(card: Card) -> torch.memory_format:
    return torch.channels_last_3d if "patch" in card.grid else torch.channels_last
