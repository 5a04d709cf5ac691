"""What the README says of real scans: trains on them with the documented commands and scores what comes out.

    python benchmarks/real_scans.py one      learn one scan by heart, from any orientation and spacing (10 minutes)
    python benchmarks/real_scans.py cohort   9 head-and-neck patients to learn from, 3 to score (15 minutes)
    python benchmarks/real_scans.py v1       the 104-name folder with float64 masks, as it is (5 minutes)

Needs $MEDSEG_TEST_DATA. Every Dice is computed twice: by the package's `evaluate` and by ten lines of NumPy below.
"""

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.processing import resample_to_output

DATA = Path(os.environ["MEDSEG_TEST_DATA"])


def medseg(*arguments: object) -> dict:
    """The numbers that a command of the package prints."""
    command = ["medseg", "totalseg", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def numpy_dice(pred: Path, ref: Path) -> float:
    """Mean Dice over the structures of the reference and those that were invented, without the package."""
    mask = np.asarray(nib.load(pred).dataobj)
    names = {name: int(i) for i, name in json.loads((pred.parent / "labels.json").read_text()).items()}
    dice = []
    for file in sorted(ref.glob("*.nii.gz")):
        found, true = mask == names[file.name[:-7]], np.asarray(nib.load(file).dataobj) > 0.5
        if found.any() or true.any():
            dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    return float(np.mean(dice))


def turned(image: nib.Nifti1Image, orientation: str, spacing: tuple[float, ...] | None, order: int) -> nib.Nifti1Image:
    """The same scan as another scanner would have stored it, by NiBabel and SciPy."""
    if spacing:
        image = resample_to_output(image, spacing, order=order, cval=-1024 if order else 0)
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(orientation))
    voxels = nib.orientations.apply_orientation(np.asarray(image.dataobj), change)
    return nib.Nifti1Image(voxels, image.affine @ inv_ornt_aff(change, image.shape))


def one(work: Path) -> None:
    """Can the pipeline learn at all, and does the way home hold from any grid?"""
    case = DATA / "ct_multiorgan" / "ts_s0002"
    begun = time.monotonic()
    medseg("train", case, "--out", work / "run", "--epochs", 150, "--size", 128)
    print(f"trained on {case.name}, 150 epochs of its 30 slices at 128: {(time.monotonic() - begun) / 60:.1f} minutes")
    for orientation, spacing in (
        ("RAS", None),
        ("LPS", None),
        ("SLA", None),
        ("RAS", (2.0, 2.0, 2.0)),
        ("PIR", (2.5, 3.5, 4.0)),
    ):
        there = work / f"{orientation}-{spacing}" / "scans" / case.name
        (there / "segmentations").mkdir(parents=True)
        nib.save(turned(nib.load(case / "ct.nii.gz"), orientation, spacing, 1), there / "ct.nii.gz")
        for mask in (case / "segmentations").glob("*.nii.gz"):
            nib.save(turned(nib.load(mask), orientation, spacing, 0), there / "segmentations" / mask.name)
        out = there.parents[1]
        medseg("predict", there, "--model", work / "run", "--out", out / "masks")
        scores = medseg("evaluate", out / "masks", there.parent, "--out", out / "scores")
        by_hand = numpy_dice(out / "masks" / f"{case.name}.nii.gz", there / "segmentations")
        where = f"{orientation} at {spacing or 'its own spacing'}"
        print(f"{where:32} Dice {scores['dice']:.3f} by evaluate, {by_hand:.3f} by NumPy, 0 by predicting nothing;")
        print(f"{'':32} of {scores['structures']} structures {scores['missed']} missed, {scores['invented']} invented")


def cohort(work: Path) -> None:
    """Several patients: 9 to learn from, 3 to score; a structure without a file was not annotated."""
    data = DATA / "ct_more" / "openkbp"
    names = sorted(folder.name for folder in data.iterdir() if folder.is_dir())
    split = {"seed": 0, "unit": "group", "train": names[3:], "val": [], "test": names[:3]}
    (work / "split.json").write_text(json.dumps(split))
    begun = time.monotonic()
    flags = ["--labels", "folder", "--missing", "ignore", "--splits", work / "split.json"]
    medseg("train", data, "--out", work / "run", "--epochs", 8, "--size", 128, *flags)
    print(f"trained on {len(split['train'])} patients, 8 epochs: {(time.monotonic() - begun) / 60:.1f} minutes")
    scores = medseg(
        "evaluate",
        "--data",
        data,
        "--model",
        work / "run",
        "--out",
        work / "scores",
        "--labels",
        "folder",
        "--missing",
        "ignore",
    )
    interval = f"[{scores['dice_low']:.3f}, {scores['dice_high']:.3f}]"
    print(f"on {', '.join(split['test'])}: Dice {scores['dice']:.3f} {interval}, 0 by predicting nothing")
    with (work / "scores" / "summary.csv").open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == "structure" and row["measure"] == "dice" and not row["model"]:
                counts = f"n {row['n']}  missed {row['n_missed']}  invented {row['n_invented']}"
                print(f"  {row['name']:16} {float(row['mean']):.3f}  {counts}")


def v1(work: Path) -> None:
    """The first release's names and float64 masks, as they are."""
    case = DATA / "ct_multiorgan" / "ts_s0001"
    begun = time.monotonic()
    facts = medseg("prepare", case, "--out", work / "cache")
    print(f"prepared {case.name} ({facts['structures']} names) in {time.monotonic() - begun:.1f} s")
    begun = time.monotonic()
    medseg("train", work / "cache", "--out", work / "run", "--epochs", 30, "--size", 128)
    print(f"trained 30 epochs of its 112 slices: {(time.monotonic() - begun) / 60:.1f} minutes")
    medseg("predict", case, "--model", work / "run", "--out", work / "masks")
    scores = medseg("evaluate", work / "masks", case, "--out", work / "scores")
    print(f"Dice {scores['dice']:.3f} on the same scan; missed {scores['missed']}, invented {scores['invented']}")


if __name__ == "__main__":
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(sys.argv[2] if len(sys.argv) > 2 else folder)
        work.mkdir(parents=True, exist_ok=True)
        {"one": one, "cohort": cohort, "v1": v1}[sys.argv[1]](work)
