"""`medseg near`: flags, one config, one call each."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
from medseg_core.settings import ScoreConfig
from medseg_near.settings import FitConfig, MergeConfig, PrepareConfig, RefineConfig

app = App("medseg-near", "Noisy 3D labels repaired by an implicit shape model: prepare, fit, refine, merge and look.")

LABELS = "Label maps, masks, a MedMNIST .npz, or the folder of the first NeAR."
Labels = Annotated[Path, typer.Argument(metavar="LABELS", help=LABELS)]
Label = Annotated[
    str, typer.Option("--label", metavar="ID|NAME,...", help="The structure; several make a cohort of one scan.")
]
Images = Annotated[Path | None, typer.Option("--images", metavar="CT", help="A CT, or a folder of them by case.")]
Names = Annotated[
    Path | None, typer.Option("--names", metavar="FILE", help="A class list, where none lies beside the labels.")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="ID", help="This case alone; again for more.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where all randomness starts.")]


@app.command()
def check(
    labels: Labels,
    label: Label = "",
    images: Images = None,
    names: Names = None,
    as_json: Json = False,
) -> None:
    """Say what is there, and all that is wrong with LABELS, before any work."""
    from medseg_near.check import check as run

    checked = run(labels, label=label, images=images, names=names)
    if not as_json:
        typer.echo(checked.table())
    findings = list(checked.findings)
    tell({"shapes": checked.shapes, "findings": findings} if as_json else findings, as_json=as_json)
    if checked.bad:
        raise typer.Exit(1)


@app.command()
@flags(PrepareConfig)
def prepare(
    labels: Labels,
    config: PrepareConfig,
    out: Annotated[Path, typer.Option("--out", metavar="CACHE", help="Where the shapes go.")],
    label: Label = "",
    images: Images = None,
    names: Names = None,
    only: Only = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many shapes, the first ones.")] = None,
    as_json: Json = False,
) -> None:
    """Crop a structure with a margin out of every scan, and keep the way back."""
    from medseg_near.prepare import prepare as run

    outcome = run(labels, out, config, label=label, images=images, names=names, only=only, limit=limit)
    tell({"out": str(out), **_counts(outcome)}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
def split(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="What prepare made.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The split file, for fit --splits.")],
    val: Annotated[float, typer.Option("--val", min=0, max=1, help="Share of the scans to validate on.")] = 0.1,
    test: Annotated[float, typer.Option("--test", min=0, max=1, help="Share of the scans to hold out.")] = 0.2,
    seed: Seed = 42,
    as_json: Json = False,
) -> None:
    """Divide the shapes of CACHE into training, validation and test; structures of one scan stay together."""
    from medseg_near.sources import some
    from medseg_near.splits import split as run

    parts = run(cache, out, val=val, test=test, seed=seed)
    tell(parts if as_json else {part: f"{len(ids)}: {some(ids)}" for part, ids in parts.items()}, as_json=as_json)


@app.command()
@flags(FitConfig)
def fit(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="What prepare made.")],
    config: FitConfig,
    out: RunOut = None,
    eval_every: Annotated[
        int | None, typer.Option("--eval-every", min=1, metavar="N", help="The same as --val-every.")
    ] = None,
    splits: Splits = None,
    only: Only = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn the shapes of CACHE, and how to undo errors in them; or one decoder for all and 256 numbers for each."""
    from medseg_core.runs import run_path
    from medseg_near.fit import fit as run

    config = config if eval_every is None else replace(config, val_every=eval_every)
    with run_path(out, "near", "fit", resume=resume) as folder:
        result = run(cache, folder, config, splits=splits, only=only or (), resume=resume, overwrite=overwrite)
    tell_result(result, folder, as_json=as_json)


@app.command()
@flags(RefineConfig)
def refine(
    labels: Annotated[list[Path], typer.Argument(metavar="LABELS...", help=LABELS)],
    config: RefineConfig,
    model: Annotated[Path, typer.Option("--model", metavar="RUN", help="A run of fit, or its weights file.")],
    out: Out,
    label: Label = "",
    images: Images = None,
    names: Names = None,
    native: Annotated[
        bool, typer.Option("--native", help="Ask at the voxels of each label; so it is without --resolution too.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Redraw LABELS by the shape that the model sees in them; every change is counted, mapped and can be bounded."""
    from medseg_near.refine import refine_files, summary

    config = replace(config, resolution=0) if native else config
    more = {"label": label, "images": images, "names": names, "overwrite": overwrite}
    outcome = refine_files(labels, model, out, config, **more)
    tell({"out": str(out), **_counts(outcome), **summary(out)}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
@flags(MergeConfig)
def merge(
    config: MergeConfig,
    base: Annotated[Path, typer.Option("--base", metavar="LABELS", help="The label maps that are mended.")],
    out: Out,
    refined: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REFINED...]", help="CLASS=FOLDER of its masks, or a folder of label maps."),
    ] = None,
    names: Names = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse refined classes into label maps, and clean them by anatomical rules whose effects are counted."""
    from medseg_core.labelmaps import read_labels
    from medseg_near.merge import flags as flags_of
    from medseg_near.merge import merge_files, summary

    labels = None if names is None else read_labels(names)
    outcome = merge_files(refined or [], base, out, config, labels=labels, overwrite=overwrite)
    told = {"out": str(out), **_counts(outcome), "flagged": flags_of(out)}
    tell({**told, "rules": summary(out)} if as_json else told, as_json=as_json)
    if not as_json:
        tell(summary(out), as_json=False)
    tell_failures(outcome.failed)


@app.command()
@flags(ScoreConfig)
def evaluate(
    pred: Annotated[Path, typer.Argument(metavar="PRED", help="Masks or label maps, by case.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="Clean ones, by case.")],
    config: ScoreConfig,
    out: Out,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="NOISY", help="What was refined: is it any better now?")
    ] = None,
    names: Names = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score masks against clean ones, beside what they were before: tables, pictures, one offline report.html."""
    from medseg_core.folders import evaluate_folders
    from medseg_core.labelmaps import read_labels

    labels = None if names is None else read_labels(names)
    evaluation, failed = evaluate_folders(pred, ref, out, config, labels=labels, compare=compare, overwrite=overwrite)
    tell({**evaluation.headline(), "report": str(out / "report.html")}, as_json=as_json)
    tell_failures(failed)


@app.command()
def phantom(
    out: Out,
    num_cases: Annotated[int, typer.Option("--num-cases", min=1, help="How many hearts.")] = 6,
    size: Annotated[int, typer.Option("--size", min=32, help="Voxels along each edge.")] = 96,
    spacing_mm: Annotated[float, typer.Option("--spacing-mm", min=0.2, help="Edge of a voxel.")] = 1.0,
    seed: Seed = 0,
) -> None:
    """Write hearts with coronary trees: clean labels, noisy ones, and a CT, to try things on."""
    from medseg_near.phantom import phantom as make

    make(out, num_cases=num_cases, seed=seed, size=size, spacing_mm=spacing_mm)


@app.command()
def demo(out: Out = Path("demo"), quick: Quick = False) -> None:
    """Phantom, prepare, fit, refine, evaluate: broken vessels before and after, in DIR/report.html."""
    from medseg_near.demo import demo as run

    tell(run(out, quick=quick), as_json=False)


def _counts(outcome: Any) -> dict[str, Any]:
    return {"done": len(outcome.done), "skipped": len(outcome.skipped), "failed": len(outcome.failed)}
