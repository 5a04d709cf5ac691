"""`medseg cardiac`: flags, one config, one call each."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_cardiac.settings import (
    EvaluateConfig,
    MotionConfig,
    PredictConfig,
    RegistrationConfig,
    SegmentationConfig,
)
from medseg_core.errors import MedsegError
from medseg_core.options import (
    App,
    Json,
    Out,
    Overwrite,
    Quick,
    Resume,
    RunOut,
    Splits,
    flags,
    tell,
    tell_failures,
    tell_result,
)

app = App("medseg-cardiac", "Cine CMR to motion, registration and infarct: prepare, train, predict, evaluate and look.")

Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="A folder with images/cmr/<case>/<slice>.nii.gz and labels/."),
]
Run = Annotated[Path, typer.Option("--model", metavar="RUN", help="A run folder or its weights file.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where all randomness starts.")]


@app.command()
def check(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write the case list, with ED and ES."),
    ] = None,
    axes: Annotated[str, typer.Option("--axes", help="Order of the axes of cine files, as THW or HWST.")] = "auto",
    as_json: Json = False,
) -> None:
    """Say what is there, what is missing and what is wrong with DATA, before any work."""
    from medseg_cardiac.audit import check as audit

    checked = audit(data, out=out, axes=axes)
    if not as_json:
        typer.echo(checked.table())
    findings = list(checked.findings)
    tell({"patients": checked.patients, "findings": findings} if as_json else findings, as_json=as_json)
    if checked.bad:
        raise typer.Exit(1)


@app.command()
def split(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The split file; {part}_cases.txt lie beside it.")],
    ratios: Annotated[
        str, typer.Option("--ratios", metavar="TRAIN,VAL,TEST", help="Shares of the patients.")
    ] = "0.7,0.15,0.15",
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Divide the patients of DATA into training, validation and test."""
    from medseg_cardiac.splits import split as run

    parts = run(data, out, ratios=_numbers(ratios), seed=seed)
    tell(parts if as_json else {part: f"{len(ids)}: {', '.join(ids)}" for part, ids in parts.items()}, as_json=as_json)


@app.command()
def prepare(
    source: Annotated[
        Path,
        typer.Argument(metavar="DICOM|ZIP", help="One patient's cine, or a folder with a folder or a zip of each."),
    ],
    out: Out,
    contours: Annotated[
        Path | None,
        typer.Option("--contours", metavar="DIR", help="Contours as text files; else those beside the DICOM."),
    ] = None,
    series: Annotated[
        str | None, typer.Option("--series", metavar="UID|all", help="Which series, where there are several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build DATA from cine DICOM: slices by position, frames by time, contours filled; every slice keeps its place."""
    from medseg_cardiac.prepare import prepare as run

    outcome = run(source, out, contours=contours, series=series)
    tell({"out": str(out), **_counts(outcome)}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command("train-motion")
@flags(MotionConfig)
def train_motion(
    data: Data,
    config: MotionConfig,
    out: RunOut = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    splits: Splits = None,
    as_json: Json = False,
) -> None:
    """Learn motion from pairs of frames; no label is needed, and pools drawn at ED and ES score it."""
    from medseg_cardiac.train import train_motion as run

    _train(run, "train-motion", data, config, out, resume, as_json, splits=splits, overwrite=overwrite)


@app.command("train-registration")
@flags(RegistrationConfig)
def train_registration(
    data: Data,
    config: RegistrationConfig,
    out: RunOut = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    splits: Splits = None,
    as_json: Json = False,
) -> None:
    """Learn to bring LGE onto the cine; scored on what is drawn in both, never on a mask against itself."""
    from medseg_cardiac.train import train_registration as run

    _train(run, "train-registration", data, config, out, resume, as_json, splits=splits, overwrite=overwrite)


@app.command("train-segmentation")
@flags(SegmentationConfig)
def train_segmentation(
    data: Data,
    config: SegmentationConfig,
    motion: Annotated[Path, typer.Option("--motion", metavar="RUN", help="A run of train-motion, or its weights.")],
    registration: Annotated[
        Path | None,
        typer.Option("--registration", metavar="RUN", help="A run of train-registration; without it geometry alone."),
    ] = None,
    out: RunOut = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    splits: Splits = None,
    as_json: Json = False,
) -> None:
    """Learn infarct from cine, with the labels of LGE brought to it; the run carries its motion net."""
    from medseg_cardiac.train import train_segmentation as run

    more = {"motion": motion, "registration": registration, "splits": splits, "overwrite": overwrite}
    _train(run, "train-segmentation", data, config, out, resume, as_json, **more)


@app.command()
@flags(PredictConfig)
def predict(
    config: PredictConfig,
    model: Run,
    out: Out,
    data: Annotated[Path | None, typer.Argument(metavar="[DATA]", help="A data folder: one mask per patient.")] = None,
    cine: Annotated[
        Path | None, typer.Option("--cine", metavar="FILE", help="A cine: a slice, a stack, or a folder of slices.")
    ] = None,
    myo: Annotated[Path | None, typer.Option("--myo", metavar="FILE", help="Its myocardium at ED.")] = None,
    number: Annotated[int | None, typer.Option("--slice", metavar="N", help="One slice of it, from 0.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find infarct in cine, on the grid of the myocardium mask; motion, strain and films on request."""
    from medseg_cardiac.predict import find_patients, predict_files

    patients = find_patients(data, cine, myo, slice_index=number, axes=config.axes)
    outcome = predict_files(patients, model, out, config, overwrite=overwrite)
    tell({"out": str(out), **_counts(outcome), **_answers(out)}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
@flags(EvaluateConfig)
def evaluate(
    config: EvaluateConfig,
    out: Out,
    pred: Annotated[
        Path | None, typer.Argument(metavar="PRED", help="Masks: <case>.nii.gz or <case>/<slice>.nii.gz.")
    ] = None,
    ref: Annotated[Path | None, typer.Argument(metavar="REF", help="Reference masks, in the same forms.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATA", help="Predict these patients first, with --model.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="RUN", help="The run that is scored on --data.")
    ] = None,
    registration: Annotated[
        Path | None,
        typer.Option("--registration", metavar="RUN", help="Brings LGE labels to the cine where it has none."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="train|val|test|all", help="Which patients of --data.")
    ] = "test",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score masks against masks, or a RUN on patients: tables, pictures, bull's-eyes, one offline report.html."""
    from medseg_cardiac.evaluate import evaluate_files, evaluate_run, headline

    if data and model and not (pred or ref):
        more = {"split": split, "registration": registration}
        evaluation, failed = evaluate_run(data, model, out, config, overwrite=overwrite, **more)
    elif pred and ref and not (data or model):
        evaluation, failed = evaluate_files(pred, ref, out, config, overwrite=overwrite)
    else:
        raise MedsegError("evaluate takes PRED and REF, or --data DATA with --model RUN, and not both")
    tell({**headline(evaluation), "report": str(out / "report.html")}, as_json=as_json)
    tell_failures(failed)


@app.command("init-weights")
def init_weights(out: Out, seed: Seed = 42, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Write the three untrained networks, and say how large they are."""
    from medseg_cardiac.weights import init_weights as make
    from medseg_core.runs import aligned

    rows = make(out, seed=seed, overwrite=overwrite)
    if as_json:
        tell(rows, as_json=True)
        return
    columns = {key: [f"{row[key]:,}" if key != "network" else row[key] for row in rows] for key in rows[0]}
    typer.echo("\n".join(aligned(columns, right=list(columns)[1:])))


@app.command()
def phantom(
    out: Out,
    num_cases: Annotated[int, typer.Option("--num-cases", min=1, help="How many patients.")] = 6,
    size: Annotated[
        int, typer.Option("--size", min=32, help="Edge of a slice, in pixels; the field of view stays.")
    ] = 128,
    num_slices: Annotated[int, typer.Option("--num-slices", min=1, help="Slices of each.")] = 3,
    num_frames: Annotated[int, typer.Option("--num-frames", min=2, help="Frames of the cycle.")] = 20,
    seed: Seed = 0,
) -> None:
    """Write patients whose motion, strain and infarct are known, in the layout of DATA, to try things on."""
    from medseg_cardiac.phantom import phantom as make

    make(out, num_cases=num_cases, seed=seed, size=size, num_slices=num_slices, num_frames=num_frames)


@app.command()
def demo(out: Out = Path("demo"), quick: Quick = False) -> None:
    """Phantom, three trainings, predict, evaluate: ends in DIR/report.html."""
    from medseg_cardiac.demo import demo as run

    tell(run(out, quick=quick), as_json=False)


def _train(
    run: Any, verb: str, data: Path, config: Any, out: Path | None, resume: str, as_json: bool, **more: Any
) -> None:
    """One training, and what it came to."""
    from medseg_core.runs import run_path

    with run_path(out, "cardiac", verb, resume=resume) as folder:
        result = run(data, folder, config, resume=resume, **more)
    tell_result(result, folder, as_json=as_json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise MedsegError(f"--ratios {text!r} are no numbers; write 0.7,0.15,0.15") from None


def _counts(outcome: Any) -> dict[str, Any]:
    return {"done": len(outcome.done), "skipped": len(outcome.skipped), "failed": len(outcome.failed)}


def _answers(out: Path) -> dict[str, Any]:
    """What was found in the patient, where it is one, or how many folds there are in all."""
    from medseg_core.cohort import read_journal

    rows = read_journal(out)
    left_out = sum(len(row.get("left_out", ())) for row in rows.values())
    told: dict[str, Any] = {"slices_left_out": left_out} if left_out else {}
    if len(rows) == 1:
        (row,) = rows.values()
        return told | {name: value for name, value in row.items() if name not in ("left_out", "inputs")}
    return told | {"folds": sum(int(row.get("folds", 0)) for row in rows.values())}
