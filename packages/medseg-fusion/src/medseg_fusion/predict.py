"""From CT and PET, or from one of them, to a mask on the very grid that they came in on; the network is loaded once."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.checkpoint import digest, load_model
from medseg_core.cohort import JOURNAL, Outcome, clear_journal, for_each
from medseg_core.config import as_dict
from medseg_core.device import choose_device
from medseg_core.dicom import is_dicom
from medseg_core.distributed import from_first
from medseg_core.errors import MedsegError
from medseg_core.io import case_name, is_picture, write_picture, write_volume
from medseg_core.volume import Picture, Volume, resample
from medseg_fusion.models import MODELS
from medseg_fusion.patients import BITS, Patient, read_patient
from medseg_fusion.settings import PredictConfig
from medseg_fusion.sources import role_of
from medseg_fusion.train import PACKAGE, probabilities

NO_NAME = ("image", "dicom")  # words of a file that say nothing of whose it is; its folder does


class Predictor:
    """The network of a run, held in memory.

    Args:
        run: of `train`, or its weights file.

    Raises:
        MedsegError: no such run, or weights of another package.
    """

    def __init__(self, run: Path, config: PredictConfig | None = None) -> None:
        self.config, self.run = config or PredictConfig(), run
        net, self.card = load_model(run, MODELS)
        if self.card.package != PACKAGE:
            raise MedsegError(f"{run} holds weights of {self.card.package}; give a run of medseg fusion train")
        self.net = net.to(choose_device(self.config.device))
        given = self.config.threshold
        self.threshold = float(self.card.chosen.get("threshold", 0.5)) if given is None else given

    def read(self, case: Case) -> Patient:
        """A patient on the grid that the network was trained on, whose CT or PET may be missing.

        Raises:
            MedsegError: another unit than the network's, or a modality missing that it cannot do without.
        """
        intensity = self.card.intensity
        for role in ("ct", "pet"):
            if role not in case.files and role not in intensity["missing"]:
                fix = "give both, or train with --drop-chance 0.2"
                raise MedsegError(f"{case.id} has no {role.upper()}, and {self.run} has never been without; {fix}")
        spacing = None if intensity["unit"] == BITS else tuple(self.card.grid["spacing"])
        patient = read_patient(case, spacing_mm=spacing)
        self.check_unit(case.id, patient.unit)
        return patient

    def check_unit(self, name: str, unit: str) -> None:
        """Raises where a patient comes in another unit than the network's."""
        if unit != self.card.intensity["unit"]:
            raise MedsegError(f"{name} comes in {unit}, and {self.run} was trained on {self.card.intensity['unit']}")

    def probabilities(self, ct: np.ndarray, pet: np.ndarray, *, present: Sequence[bool] = (True, True)) -> np.ndarray:
        """(A, B, S) float32, on the grid of a patient or of a cache."""
        return probabilities(self.net, ct, pet, self.card, present=present)


def predict_files(
    ct: Path | None, pet: Path | None, run: Path, out: Path, config: PredictConfig, *, overwrite: bool = False
) -> Outcome:
    """Writes `out/<case>.nii.gz` on the CT's grid, or `out/<name>.png` of 0 and 255, and with `save_prob` `out/probs/`.

    Args:
        ct, pet: a volume, a DICOM series, a picture, or a folder of volumes or pictures each, in which a case has the
            same name but for words such as CT and PET. One of them may be None where the network can do without.

    Raises:
        MedsegError: nothing to predict, names without a counterpart, no such run, or a folder with something else.
    """
    cases, out = find_inputs(ct, pet), Path(out)
    from_first(partial(_check_out, out, cases, overwrite=overwrite))
    predictor = Predictor(run, config)
    if overwrite:
        from_first(partial(clear_journal, out))
    weights = digest(run)
    settings = {**as_dict(config), "weights": weights}
    return for_each(cases, partial(_write, predictor=predictor, out=out), out=out, config=settings, again=True)


def find_inputs(ct: Path | None, pet: Path | None) -> list[Case]:
    """The cases of two files or two folders, one of which may be None."""
    found = {role: _named(Path(path), role) for role, path in (("ct", ct), ("pet", pet)) if path is not None}
    if not found:
        raise MedsegError("nothing to predict; give --ct, --pet, or both")
    if len(found) == 2 and all(len(named) == 1 for named in found.values()):
        name = next(iter(found["ct"]))
        return [_case(name, {role: next(iter(named.values())) for role, named in found.items()})]
    for named in found.values():
        for other, counterparts in found.items():
            if lone := sorted(named.keys() - counterparts.keys()):
                raise MedsegError(f"{named[lone[0]]} has no {other.upper()} of the name {lone[0]!r}")
    names = next(iter(found.values()))
    return [_case(name, {role: named[name] for role, named in found.items()}) for name in sorted(names)]


def _named(path: Path, role: str) -> dict[str, Path]:
    """Case -> file: the volumes and pictures of a folder, of this role where names say it, else the file itself."""
    if not path.exists():
        raise MedsegError(f"there is no file or folder {path}")
    files = [path]
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        inside = [p for p in inside if role_of(case_name(p)) == role] or inside
        is_series = any(is_dicom(p) for p in inside[:1])
        files = [path] if is_series else [p for p in inside if case_name(p) != p.name] or [path]
    named: dict[str, Path] = {}
    for file in files:
        words = case_name(file).removesuffix(".zip").replace("-", "_").split("_")
        own = (word for word in words if word and role_of(word) != role and word.lower() not in NO_NAME)
        name = "_".join(own) or file.resolve().parent.name
        if first := named.get(name):
            raise MedsegError(f"{first} and {file} are both {name!r}; rename one of them")
        named[name] = file
    return named


def _case(name: str, files: Mapping[str, Path]) -> Case:
    if any(is_picture(file) for file in files.values()):
        first = next(iter(files.values()))
        if any(file.name != first.name for file in files.values()):
            raise MedsegError(f"{' and '.join(map(str, files.values()))} must have one name")
        notes = {"kind": "pictures", "slices": [first.name]}
        return Case(name, {role: file.parent for role, file in files.items()}, notes=notes)
    return Case(name, dict(files), notes={"kind": "volume"})


def _check_out(out: Path, cases: list[Case], *, overwrite: bool) -> None:
    """Nothing that was read is written over, and other people's files only when that was asked for."""
    homes = {(file if file.is_dir() else file.parent).resolve() for case in cases for file in case.files.values()}
    if out.resolve() in homes:
        raise MedsegError(f"{out} holds what is to be predicted; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file() and not overwrite:
        raise MedsegError(f"{out} is not empty and was not begun by predict; choose another --out, or add --overwrite")


def _write(case: Case, *, predictor: Predictor, out: Path) -> Mapping[str, Any]:
    patient = predictor.read(case)
    probs = predictor.probabilities(patient.ct, patient.pet, present=patient.present)
    if patient.home is None or patient.affine is None:
        mask = probs >= predictor.threshold
        write_picture(Picture(255 * mask[..., 0].astype(np.uint8)), out / Path(patient.slices[0]).with_suffix(".png"))
        if predictor.config.save_prob:
            write_picture(Picture(probs[..., 0]), out / "probs" / f"{case.id}.tif")
        return {"tumour_pixels": int(mask.sum())}
    at_home = resample(Volume(probs, patient.affine), patient.home, outside=0.0)
    mask = at_home.like((at_home.voxels >= predictor.threshold).astype(np.uint8))
    write_volume(mask, out / f"{case.id}.nii.gz")
    if predictor.config.save_prob:
        write_volume(at_home, out / "probs" / f"{case.id}.nii.gz")
    return {"tumour_ml": float(mask.voxels.sum() * np.prod(mask.spacing_mm) / 1000)}
