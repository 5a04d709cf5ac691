"""From a CT of any orientation and spacing to a mask on its very grid; the network is loaded once."""

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_core.cases import Case
from medseg_core.checkpoint import Card, load_model
from medseg_core.cohort import JOURNAL, Outcome, for_each
from medseg_core.config import as_dict
from medseg_core.device import choose_device, choose_precision
from medseg_core.errors import MedsegError
from medseg_core.infer import Net, Reduce, decide, entropy, infer, mean_of
from medseg_core.io import case_name, read_volume, write_volume
from medseg_core.volume import Grid, Volume, resample
from medseg_totalseg.labels import select, write_label_files
from medseg_totalseg.models import MODELS
from medseg_totalseg.settings import PredictConfig
from medseg_totalseg.slices import normalise

WHOLE = 768  # pixels of an edge; a larger plane is worked off in windows


class Predictor:
    """The network of a run, or the mean of several, held in memory.

    >>> predictor = Predictor(Path("RUN"))
    >>> mask = predictor(voxels, affine)  # (X, Y, Z) HU and (4, 4) mm -> (X, Y, Z) label ids

    Args:
        runs: run folders or weights files; several are an ensemble, which averages probabilities.
        config: settings of the prediction.

    Raises:
        MedsegError: no such run, weights of another package, or runs that do not belong together.
    """

    def __init__(self, *runs: Path, config: PredictConfig | None = None) -> None:
        self.config = config or PredictConfig()
        self.device = choose_device(self.config.device)
        self.precision = choose_precision(self.config.precision, self.device)
        loaded = [load_model(run, MODELS) for run in runs]
        self.card = _common_card([card for _, card in loaded], runs)
        self.labels = select(self.card.labels, self.config.structures)
        self.net: Net = mean_of(
            [net.to(self.device, memory_format=torch.channels_last) for net, _ in loaded], head=self.card.head
        )

    def __call__(self, voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """(X, Y, Z) intensities in HU with their affine -> (X, Y, Z) label ids on the same grid."""
        return self.predict(Volume(voxels, affine)).voxels

    def predict(self, image: Volume) -> Volume:
        """The mask of label ids on the image's own grid."""
        ids, grid = self._infer(image, decide(self.card))
        return self._home(ids, grid, image)

    def predict_with_uncertainty(self, image: Volume) -> tuple[Volume, Volume]:
        """The mask, and how undecided the network is at each voxel: entropy from 0 (sure) to 1, float32."""
        ids, doubt = decide(self.card), entropy(self.card)
        both, grid = self._infer(image, lambda y_KS: torch.stack([ids(y_KS).float(), doubt(y_KS)]))
        kind = np.uint8 if max(self.card.channels) < 2**8 else np.uint16
        map_ = resample(Volume(both[1], grid.affine), image.grid, outside=0.0)
        return self._home(both[0].astype(kind), grid, image), map_

    def _infer(self, image: Volume, reduce: Reduce) -> tuple[np.ndarray, Grid]:
        """What `reduce` makes of the logits, on the grid that the network was trained on."""
        if not np.isfinite(image.voxels.sum(dtype=np.float64)):
            raise MedsegError("the image holds voxels that are NaN or infinite; set them to -1024 first")
        grid = image.grid.oriented(self.card.grid["orientation"], tuple(self.card.grid["spacing_mm"]))
        there = normalise(resample(image, grid).voxels, self.card.intensity)
        answer = infer_planes(
            self.net,
            there,
            self.card,
            reduce=reduce,
            overlap=self.config.overlap,
            batch_size=self.config.batch_size,
            device=str(self.device),
            precision=self.precision,
        )
        return answer, grid

    def _home(self, ids: np.ndarray, grid: Grid, image: Volume) -> Volume:
        if self.labels.keys() != self.card.labels.keys():
            keep = np.zeros(max(self.card.channels) + 1, ids.dtype)
            keep[list(self.labels)] = list(self.labels)
            ids = keep[ids]
        return resample(Volume(ids, grid.affine), image.grid, how="label")


def infer_planes(net: Net, image: np.ndarray, card: Card, *, reduce: Reduce, **more: Any) -> np.ndarray:
    """A 2D network run over every axial plane of a normalised image (X, Y, Z): `reduce`'s answer, (..., X, Y, Z).

    A plane goes through whole, padded to what the network can halve, unless it is very large.
    """
    stride = 2 ** (len(card.arguments["widths"]) - 1)
    window = [-(-n // stride) * stride if n <= WHOLE else card.grid["size"] for n in image.shape[:2]]
    return infer(
        lambda x_NCHW1: net(x_NCHW1[..., 0])[..., None], image[None], window=(*window, 1), reduce=reduce, **more
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
    finished before is skipped; a case that fails is told in the outcome and costs only itself.

    Args:
        only: names of the cases to predict; None takes all.

    Raises:
        MedsegError: no scan, no such run, or an output folder that holds something else.
    """
    cases = [case for case in find_images(image) if only is None or case.id in only]
    _check_out(out, cases, overwrite=overwrite)
    predictor = Predictor(*models, config=config)
    if overwrite:
        (out / JOURNAL).unlink(missing_ok=True)
    weights = [hashlib.sha256((m / "best.safetensors" if m.is_dir() else m).read_bytes()).hexdigest() for m in models]
    work = partial(_predict_case, predictor=predictor, out=out)
    outcome = for_each(cases, work, out=out, config={**as_dict(config), "weights": weights})
    write_label_files(out, predictor.labels)
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


def _predict_case(case: Case, *, predictor: Predictor, out: Path) -> Mapping[str, Any]:
    begun = time.monotonic()
    image = read_volume(case.files["ct"])
    if predictor.config.uncertainty:
        mask, doubt = predictor.predict_with_uncertainty(image)
        write_volume(doubt, out / "uncertainty" / f"{case.id}.nii.gz")
    else:
        mask = predictor.predict(image)
    if predictor.config.format == "masks":
        for number, name in predictor.labels.items():
            one = mask.like((mask.voxels == number).astype(np.uint8))
            write_volume(one, out / case.id / f"{name}.nii.gz")
    else:
        write_volume(mask, out / f"{case.id}.nii.gz")
    found = [predictor.labels[i] for i in np.unique(mask.voxels).tolist() if i]
    return {"seconds": round(time.monotonic() - begun, 2), "structures": found}


def _common_card(cards: Sequence[Card], runs: Sequence[Path]) -> Card:
    first = cards[0]
    for card, run in zip(cards, runs, strict=True):
        if card.package != "medseg-totalseg":
            raise MedsegError(f"{run} holds weights of {card.package}, not of medseg-totalseg; give a run of `train`")
        for what in ("head", "channels", "labels", "grid", "intensity"):
            if getattr(card, what) != getattr(first, what):
                raise MedsegError(f"{run} and {runs[0]} differ in {what}; an ensemble needs runs on the same data")
    return first
