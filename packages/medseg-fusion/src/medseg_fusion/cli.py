"""`medseg fusion`: flags, one config, one call each."""

from pathlib import Path
from typing import Annotated

import typer

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
from medseg_fusion.settings import CompareConfig, FusionConfig, PredictConfig, PrepareConfig

app = App("medseg-fusion", "Tumours on CT and PET with two encoders, and the proof whether their fusion helps.")

CONFIGS = Path(__file__).parent / "configs"
DATA = "Patients: <patient>/CT_image.nii.gz beside PET_image and CT_mask, DICOM, or CT/, PET/ and masks/ of PNG slices."
Data = Annotated[Path, typer.Argument(metavar="DATA", help=DATA)]
Cache = Annotated[Path, typer.Argument(metavar="CACHE", help="What prepare made.")]
Model = Annotated[Path, typer.Option("--model", metavar="RUN", help="A run folder or weights file.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where all randomness starts.")]


@app.command()
def check(data: Data, splits: Splits = None, as_json: Json = False) -> None:
    """Say what is there, and all that is wrong with DATA, before any work: units, masks, leaks between splits."""
    from medseg_fusion.check import check as run

    checked = run(data, splits=splits)
    if not as_json:
        typer.echo(checked.table())
    findings = list(checked.findings)
    tell({"patients": checked.patients, "findings": findings} if as_json else findings, as_json=as_json)
    if checked.bad:
        raise typer.Exit(1)


@app.command()
@flags(PrepareConfig)
def prepare(data: Data, config: PrepareConfig, out: Out, as_json: Json = False) -> None:
    """Bring CT, PET and mask of each patient onto one grid, in HU and SUV."""
    from medseg_fusion.prepare import prepare as run

    outcome = run(data, out, config)
    counts = {name: len(getattr(outcome, name)) for name in ("done", "skipped", "failed")}
    tell({"out": str(out), **counts}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
def split(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The split file.")] = Path("split_info.json"),
    val: Annotated[float, typer.Option("--val-ratio", min=0, max=1, help="Share of patients to validate on.")] = 0.2,
    test: Annotated[float, typer.Option("--test-ratio", min=0, max=1, help="Share of patients to hold out.")] = 0.0,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Divide DATA by patient, always; parts that DATA brings along are kept."""
    from medseg_core.cases import SPLITS, split_cases, write_split
    from medseg_fusion.sources import find_patients

    cases = split_cases(find_patients(data).cases, val=val, test=test, seed=seed)
    write_split(out, cases, seed=seed)
    tell({part: sorted(case.id for case in cases if case.split == part) for part in SPLITS if part}, as_json=as_json)


@app.command()
@flags(FusionConfig, named=CONFIGS)
def train(
    cache: Cache,
    config: FusionConfig,
    out: RunOut = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    splits: Splits = None,
    as_json: Json = False,
) -> None:
    """Train a network; the run keeps the split that was used, and the threshold that is best on its validation part."""
    from medseg_core.runs import run_path
    from medseg_fusion.train import train as run

    with run_path(out, "fusion", "train", resume=resume) as folder:
        result = run(cache, folder, config, splits=splits, resume=resume, overwrite=overwrite)
    tell_result(result, folder, as_json=as_json)


@app.command()
@flags(PredictConfig)
def predict(
    config: PredictConfig,
    model: Model,
    out: Out,
    ct: Annotated[
        Path | None, typer.Option("--ct", metavar="F|DIR", help="A CT, or a folder of them.", show_default=False)
    ] = None,
    pet: Annotated[
        Path | None, typer.Option("--pet", metavar="F|DIR", help="Its PET, or a folder of them.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find tumours, without masks and in pictures of any size; each mask lies on the very grid of its CT.

    A network trained with --drop-chance also takes CT alone or PET alone.
    """
    from medseg_fusion.predict import predict_files

    outcome = predict_files(ct, pet, model, out, config, overwrite=overwrite)
    counts = {name: len(getattr(outcome, name)) for name in ("done", "skipped", "failed")}
    tell({"out": str(out), **counts}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
@flags(PredictConfig)
def evaluate(
    cache: Cache,
    config: PredictConfig,
    model: Model,
    out: Out,
    split: Annotated[
        str, typer.Option("--split", metavar="train|val|test|all", help="Which patients, by the run's own split.")
    ] = "val",
    save_predictions: Annotated[
        bool,
        typer.Option("--save-predictions", help="Also a PNG of each slice, and panels CT | PET | truth | prediction."),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score a run by patient, lesion and slice, beside thresholds of SUV; results.json, pictures and report.html."""
    from medseg_fusion.evaluate import evaluate_run

    how = {"split": split, "save_predictions": save_predictions, "config": config, "overwrite": overwrite}
    evaluation = evaluate_run(cache, model, out, **how)
    rivals = {name: evaluation.baselines[name].headline()["dice"] for name in evaluation.baselines if name != "empty"}
    tell({**evaluation.headline(), **rivals, "report": str(out / "report.html")}, as_json=as_json)


@app.command()
@flags(CompareConfig, named=CONFIGS)
def compare(cache: Cache, config: CompareConfig, out: Out, as_json: Json = False) -> None:
    """Train networks at equal budget on folds of patients, and say whether fusion helps: differences with intervals.

    A call that was stopped goes on cell by cell; more --nets and --seeds can be added to what is done.
    """
    from medseg_fusion.compare import compare as run

    told = run(cache, out, config)
    if as_json:
        tell(told, as_json=True)
        return
    tell(
        {name: f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for name, row in told["dice"].items()},
        as_json=False,
    )
    for entry in told["differences"]:
        ends = f"{entry['difference']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"
        typer.echo(f"{entry['one']} - {entry['other']}: {ends}, {entry['n_cases']} patients: {entry['verdict']}")


@app.command()
def phantom(
    out: Out,
    num_cases: Annotated[int, typer.Option("--num-cases", min=2, help="How many patients.")] = 12,
    seed: Seed = 0,
) -> None:
    """Write patients with known tumours, which neither CT nor PET alone tells from what looks alike."""
    from medseg_fusion.phantom import phantom as make

    make(out, num_cases=num_cases, seed=seed)


@app.command()
def demo(out: Out = Path("demo"), quick: Quick = False) -> None:
    """Phantom, prepare, compare, evaluate: does fusion help where neither CT nor PET alone tells a tumour?"""
    from medseg_fusion.demo import demo as run

    tell(run(out, quick=quick), as_json=False)
