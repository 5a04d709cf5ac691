"""`medseg totalseg`: flags, one config, one call each."""

from pathlib import Path
from typing import Annotated, Any

import typer

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
from medseg_totalseg.settings import EvaluateConfig, PredictConfig, PrepareConfig, TotalsegConfig

app = App("medseg-totalseg", "117 CT structures: prepare, train, predict, evaluate and look.")

Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="A folder of cases: s0000/ct.nii.gz and s0000/segmentations/liver.nii.gz."),
]
Models = Annotated[
    list[Path], typer.Option("--model", metavar="RUN", help="A run folder or weights file; several are an ensemble.")
]
NUM_CASES = Annotated[int, typer.Option("--num-cases", min=2, help="How many scans.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where all randomness starts.")]


@app.command()
def check(
    data: Data,
    labels: Annotated[str, typer.Option("--labels", help="official, folder, or a FILE.")] = "official",
    missing: Annotated[
        str, typer.Option("--missing", help="What a structure without a file is: empty or ignore.")
    ] = "empty",
    as_json: Json = False,
) -> None:
    """Say all that is wrong with DATA, before any work."""
    from medseg_totalseg.audit import check as audit

    findings = audit(data, labels=labels, missing=missing)
    tell(findings, as_json=as_json)
    if any(finding["severity"] == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
@flags(PrepareConfig)
def prepare(data: Data, config: PrepareConfig, out: Out, as_json: Json = False) -> None:
    """Pack the up to 117 masks of each case into one label map that trains 1000 times faster.

    DATA is the released TotalSegmentator folder as it is; --out is the cache that `train` takes.
    """
    from medseg_totalseg.prepare import prepare as run
    from medseg_totalseg.prepare import read_cohort

    outcome = run(data, out, config)
    tell({**read_cohort(out).facts(), **_counts(outcome)}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
@flags(TotalsegConfig)
def train(
    data: Annotated[Path, typer.Argument(metavar="CACHE|DATA", help="What `prepare` made, or a folder of cases.")],
    config: TotalsegConfig,
    out: RunOut = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    splits: Splits = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One batch, one step, what it is made of, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the network; the run folder is what `predict` and `evaluate` take as --model."""
    from medseg_core.runs import run_path
    from medseg_totalseg.train import rehearse
    from medseg_totalseg.train import train as run

    if dry_run:
        with run_path(out, "totalseg", "dry-run") as folder:
            tell(rehearse(data, folder, config, splits=splits), as_json=as_json)
        return
    with run_path(out, "totalseg", "train", resume=resume) as folder:
        result = run(data, folder, config, splits=splits, resume=resume, overwrite=overwrite)
    tell_result(result, folder, as_json=as_json)


@app.command()
@flags(PredictConfig)
def predict(
    image: Annotated[Path, typer.Argument(metavar="CT|FOLDER", help="A scan, or a folder of scans or of cases.")],
    config: PredictConfig,
    model: Models,
    out: Out,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment scans of any orientation and spacing; each mask lies on the very grid of its scan.

    A folder is gone through with the model loaded once; finished cases are skipped, a bad one costs only itself.
    """
    from medseg_core.distributed import place
    from medseg_totalseg.predict import predict_files

    outcome = predict_files(image, model, out, config, overwrite=overwrite)
    if place()[0] == 0:  # of many processes one speaks
        tell(_counts(outcome), as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
@flags(EvaluateConfig)
def evaluate(
    config: EvaluateConfig,
    out: Out,
    pred: Annotated[
        Path | None, typer.Argument(metavar="PRED", help="Masks: files, or folders of a file each.")
    ] = None,
    ref: Annotated[
        Path | None, typer.Argument(metavar="REF", help="Reference labels, in any of the same forms.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Scans to lay under the overlays.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="PRED2", help="Masks of another model, for a paired comparison.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATA", help="Predict these cases first, with --model.")
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option("--model", metavar="RUN", help="The run that predicts --data.")
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="train|val|test|all", help="Which cases of --data.")
    ] = "test",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score PRED against REF, or a RUN on DATA: tables, pictures, surfaces in 3D, one offline report.html."""
    from medseg_totalseg.evaluate import evaluate_files, evaluate_run

    if data and model and not (pred or ref):
        evaluation, failed = evaluate_run(data, model, out, config, split=split, overwrite=overwrite)
    elif pred and ref and not (data or model):
        evaluation, failed = evaluate_files(pred, ref, out, config, images=images, compare=compare, overwrite=overwrite)
    else:
        raise MedsegError("evaluate takes PRED and REF, or --data DATA with --model RUN, and not both")
    tell({**evaluation.headline(), "report": str(out / "report.html")}, as_json=as_json)
    tell_failures(failed)


@app.command()
def phantom(out: Out, num_cases: NUM_CASES = 6, seed: Seed = 0) -> None:
    """Write a small CT cohort with analytic organs, in the released layout, to try things on."""
    from medseg_totalseg.phantom import phantom as make

    make(out, num_cases=num_cases, seed=seed)


@app.command()
def demo(out: Out = Path("demo"), quick: Quick = False) -> None:
    """Phantom, prepare, train, predict, evaluate: ends in DIR/report.html."""
    from medseg_totalseg.demo import demo as run

    tell(run(out, quick=quick), as_json=False)


def _counts(outcome: Any) -> dict[str, Any]:
    return {"done": len(outcome.done), "skipped": len(outcome.skipped), "failed": len(outcome.failed)}
