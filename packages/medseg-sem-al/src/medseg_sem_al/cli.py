"""`medseg sem-al`: flags, one config, one call each."""

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
from medseg_sem_al.asking_cli import loop, query, simulate
from medseg_sem_al.options import Colours, EncoderInit, Given, Init, Model, Pretrained, Root, Seed
from medseg_sem_al.settings import (
    FinetuneConfig,
    IndexConfig,
    PredictConfig,
    PretrainConfig,
    PseudoConfig,
    SegConfig,
    TileConfig,
)

app = App("medseg-sem-al", "SEM segmentation from few labels: self-supervised, semi-supervised, actively learnt.")


@app.command()
@flags(IndexConfig)
def check(root: Root, config: IndexConfig, colors: Colours = None, as_json: Json = False) -> None:
    """Say what is there, and all that is wrong with ROOT, before any work: pairs, sizes, unknown colours, twins."""
    from medseg_sem_al.index import build_index

    _tell_index(build_index(root, config, colours=colors), {}, as_json=as_json)


@app.command()
@flags(IndexConfig)
def index(
    root: Root,
    config: IndexConfig,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The index.")] = Path("index.json"),
    colors: Colours = None,
    as_json: Json = False,
) -> None:
    """Pair images with masks by a rule that is named, read all classes, and divide by group: one JSON for all else.

    What cannot be used is left out and told, with exit code 1; the rest is written.
    """
    from medseg_sem_al.index import build_index

    built = build_index(root, config, colours=colors)
    built.write(out)
    _tell_index(built, {"index": str(out)}, as_json=as_json)


@app.command()
def stats(given: Given, as_json: Json = False) -> None:
    """Shares of classes, sizes and intensity of an index, for each data set."""
    from medseg_sem_al.index import read_index, statistics
    from medseg_sem_al.table import table_of

    rows = statistics(read_index(given))
    if as_json:
        tell(rows, as_json=True)
    else:
        typer.echo(table_of(rows))


@app.command()
@flags(PretrainConfig)
def pretrain(
    given: Given,
    config: PretrainConfig,
    out: RunOut = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn an encoder from all pictures, with or without masks; train and finetune take it by --encoder-init.

    Pictures of the test part are left out, and some groups are held out to judge by.
    """
    from medseg_core.runs import run_path
    from medseg_sem_al.pretrain import pretrain as run

    with run_path(out, "sem-al", "pretrain", resume=resume) as folder:
        result = run(given, folder, config, resume=resume, overwrite=overwrite)
    tell_result(result, folder, as_json=as_json)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(metavar="RUN", help="Of pretrain.")],
    given: Given,
    out: Out,
    as_json: Json = False,
) -> None:
    """Look at what pretrain learnt, on pictures that it has not seen: panels, PSNR and SSIM beside plain fillings.

    Of dino: windows beside those that it takes for most alike.
    """
    from medseg_sem_al.pretrain import inspect as run

    tell(dict(run(model, given, out)), as_json=as_json)


@app.command()
@flags(SegConfig)
def train(
    given: Given,
    config: SegConfig,
    out: RunOut = None,
    init: Init = None,
    encoder_init: EncoderInit = None,
    pretrained: Pretrained = "",
    splits: Splits = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a network on the labelled pictures of an index; validation sees whole pictures, and mean IoU chooses."""
    _train("train", given, config, out, (init, encoder_init, pretrained), splits, resume, overwrite, as_json)


@app.command()
@flags(FinetuneConfig)
def finetune(
    given: Given,
    config: FinetuneConfig,
    out: RunOut = None,
    init: Init = None,
    encoder_init: EncoderInit = None,
    pretrained: Pretrained = "",
    splits: Splits = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train on from weights that are there, which must fit: the encoder as it is, slowly, or as fast as the rest."""
    if not (init or encoder_init or pretrained or resume):
        raise MedsegError("finetune goes on from weights; give --init RUN, --encoder-init RUN or --pretrained hub")
    _train("finetune", given, config, out, (init, encoder_init, pretrained), splits, resume, overwrite, as_json)


@app.command()
@flags(PseudoConfig)
def pseudo(
    given: Given,
    config: PseudoConfig,
    model: Model,
    out: RunOut = None,
    splits: Splits = None,
    resume: Resume = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train on with pictures that nobody labelled: the averaged network teaches what it is sure of, on harder views.

    Pictures without masks are the pool. Those of the validation and test parts are never in it.
    """
    from medseg_core.runs import run_path
    from medseg_sem_al.pseudo import pseudo as run

    with run_path(out, "sem-al", "pseudo", resume=resume) as folder:
        result = run(given, folder, config, model=model, splits=splits, resume=resume, overwrite=overwrite)
    tell_result(result, folder, as_json=as_json)


@app.command()
def pipeline(
    stages: Annotated[Path, typer.Argument(metavar="STAGES.toml", help="Stages, one after the other.")],
    only: Annotated[str, typer.Option("--only", metavar="NAME", help="This stage alone.", show_default=False)] = "",
    first: Annotated[
        str, typer.Option("--from", metavar="NAME", help="Begin with this stage.", show_default=False)
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all stages and their weights; train none.")] = False,
    as_json: Json = False,
) -> None:
    """Train in stages, each from the best of the one before; a pipeline that was stopped goes on by the same call."""
    from medseg_sem_al.pipeline import pipeline as run

    tell(run(stages, only=only, first=first, dry_run=dry_run), as_json=as_json)


@app.command()
@flags(PredictConfig)
def predict(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of micrographs, or one of them.")],
    config: PredictConfig,
    model: Model,
    out: Out,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Segment pictures of any size, and measure them: masks, overlays, shares of phases, particles, contacts."""
    from medseg_sem_al.predict import predict_files

    outcome = predict_files(images, model, out, config, overwrite=overwrite)
    counts = {name: len(getattr(outcome, name)) for name in ("done", "skipped", "failed")}
    tell({"out": str(out), **counts}, as_json=as_json)
    tell_failures(outcome.failed)


@app.command()
@flags(TileConfig)
def evaluate(
    given: Given,
    config: TileConfig,
    model: Model,
    out: Out,
    split: Annotated[
        str, typer.Option("--split", metavar="train|val|test|all", help="Which pictures, by the run's own split.")
    ] = "test",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score a run: mean IoU, each class and data set, confusion, panels of the worst and the median; report.html."""
    from medseg_sem_al.evaluate import evaluate_run

    found = evaluate_run(given, model, out, split=split, config=config, overwrite=overwrite)
    if as_json:
        tell(found, as_json=True)
        return
    told = {name: found[name] for name in ("miou", "miou_low", "miou_high", "majority", "accuracy", "pictures")}
    told |= {f"iou, {name}": row["iou"] for name, row in found["classes"].items()}
    tell({**told, "report": str(out / "report.html")}, as_json=False)


for command in (query, loop, simulate):
    app.command()(command)


@app.command()
def demo(out: Out = Path("demo"), quick: Quick = False) -> None:
    """Phantom, index, pretrain, train, pseudo, evaluate, predict: what few labels are worth with a pool beside them."""
    from medseg_sem_al.demo import demo as run

    tell(run(out, quick=quick), as_json=False)


@app.command()
def phantom(
    out: Out,
    num_images: Annotated[int, typer.Option("--num-images", min=3, help="How many micrographs.")] = 24,
    num_labelled: Annotated[int, typer.Option("--num-labelled", min=0, help="How many of them have a mask.")] = 12,
    size: Annotated[int, typer.Option("--size", min=64, max=4096, help="Edge in pixels.")] = 256,
    seed: Seed = 0,
) -> None:
    """Write micrographs whose phases are known, and which brightness alone does not tell apart."""
    from medseg_sem_al.phantom import phantom as make

    make(out, num_images=num_images, num_labelled=num_labelled, size=size, seed=seed)


def _train(
    verb: str,
    given: Path,
    config: SegConfig,
    out: Path | None,
    begin: tuple[Path | None, Path | None, str],
    splits: Path | None,
    resume: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    from medseg_core.runs import run_path
    from medseg_sem_al.start import Start
    from medseg_sem_al.train import train as run

    with run_path(out, "sem-al", verb, resume=resume) as folder:
        result = run(given, folder, config, start=Start(*begin), splits=splits, resume=resume, overwrite=overwrite)
    tell_result(result, folder, as_json=as_json)


def _tell_index(built: Any, told: dict[str, Any], *, as_json: bool) -> None:
    from medseg_sem_al.index import statistics
    from medseg_sem_al.table import table_of

    rows, findings = statistics(built), list(built.findings)
    told |= {"rule": built.rule, "classes": built.classes.as_json(), "classes by": built.classes.rule}
    if as_json:
        tell({**told, "statistics": rows, "findings": findings}, as_json=True)
    else:
        classes = ", ".join(f"{n} {name}" for n, name in enumerate(built.classes.names))
        tell({**told, "classes": classes or "none"}, as_json=False)
        typer.echo(table_of(rows))
        tell(findings, as_json=False)
    if built.bad:
        raise typer.Exit(1)
