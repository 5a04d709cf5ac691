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
from medseg_sem_al.settings import (
    FinetuneConfig,
    IndexConfig,
    LoopConfig,
    PredictConfig,
    PretrainConfig,
    PseudoConfig,
    QueryConfig,
    SegConfig,
    SimulateConfig,
    TileConfig,
)

CONFIGS = Path(__file__).parent / "configs"

app = App("medseg-sem-al", "SEM segmentation from few labels: self-supervised, semi-supervised, actively learnt.")

ROOT = "Micrographs: raw/ + labeled/, images/ + masks*/, X.png beside X_mask.png, or the original's JSON."
Root = Annotated[Path, typer.Argument(metavar="ROOT", help=ROOT)]
Given = Annotated[Path, typer.Argument(metavar="INDEX", help="What index made.")]
Colours = Annotated[
    Path | None,
    typer.Option(
        "--colors",
        metavar="FILE",
        help='Classes and what stands for them: matrix = "grey", crack = "#ff0000", pore = [0, 5], rest = "other".',
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Where all randomness starts.")]
Model = Annotated[Path, typer.Option("--model", metavar="RUN", help="A run folder or weights file.")]
Init = Annotated[
    Path | None,
    typer.Option("--init", metavar="RUN", help="Begin with all weights of a run or file.", show_default=False),
]
EncoderInit = Annotated[
    Path | None,
    typer.Option(
        "--encoder-init",
        metavar="RUN",
        help="Begin with the encoder of a run of pretrain or train.",
        show_default=False,
    ),
]
Pretrained = Annotated[
    str,
    typer.Option(
        "--pretrained",
        metavar="hub|FILE",
        help="Begin with timm's weights of the encoder, from its hub (nothing else uses a network), or a .safetensors.",
        show_default=False,
    ),
]


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


@app.command()
@flags(QueryConfig)
def query(
    given: Given,
    config: QueryConfig,
    model: Annotated[
        list[Path],
        typer.Option("--model", metavar="RUN", help="A run folder or weights file; several are an ensemble."),
    ],
    out: Out,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Choose which pictures of the pool to label next: ranked, with masks to correct and maps of what is unsure.

    The pool are pictures without masks, and with --region what is not labelled of the others.
    """
    from medseg_sem_al.query import query as run

    found = run(given, model, out, config, overwrite=overwrite)
    if as_json:
        tell(found, as_json=True)
    else:
        for row in found["chosen"]:
            part = (
                f"  rows {row['box'][0]}-{row['box'][2]}, columns {row['box'][1]}-{row['box'][3]}"
                if config.region
                else ""
            )
            typer.echo(f"{row['rank']:4d}  {row['score']:.3f}  {row['why']:12} {row['file']}{part}")
        tell({"asked": found["asked"], "pool": found["pool"], "look at": str(out / "selection.png")}, as_json=False)
    tell_failures(found["failed"])


@app.command()
@flags(LoopConfig, named=CONFIGS)
def loop(
    config: LoopConfig,
    watch: Annotated[Path, typer.Option("--watch", metavar="DIR", help="The folder that people share.")],
    given: Annotated[Path | None, typer.Argument(metavar="INDEX", help="What index made.", show_default=False)] = None,
    init: Init = None,
    status: Annotated[bool, typer.Option("--status", help="Say where it stands, and stop.")] = False,
    wait: Annotated[bool, typer.Option(help="Without it the call ends where a person is awaited.")] = True,
    as_json: Json = False,
) -> None:
    """Ask for masks, wait until people saved them into the folder, train, and ask again; a kill costs nothing.

    Each round lays out pictures, proposals and heat maps below DIR, where ANNOTATING.md says what to do with them. The
    same call goes on where it was. --config one-image asks for one picture at a time.
    """
    from medseg_sem_al.loop import loop as run
    from medseg_sem_al.loop import status as found
    from medseg_sem_al.table import rounds_of

    if not status and given is None:
        raise MedsegError("give the INDEX to choose from, or --status")
    told = found(watch) if status else run(given, watch, config, init=init, wait=wait)
    if as_json:
        tell(told, as_json=True)
    else:
        typer.echo(rounds_of(told))


@app.command()
@flags(SimulateConfig)
def simulate(given: Given, config: SimulateConfig, out: Out, as_json: Json = False) -> None:
    """Hide the labels of the training part, ask for them round by round, and see what each strategy saves.

    All strategies begin with the same units of a seed; class-random is what the others are measured against. The same
    call goes on where it was.
    """
    from medseg_sem_al.simulate import simulate as run
    from medseg_sem_al.simulate import told

    found = run(given, out, config)
    if as_json:
        tell(found, as_json=True)
    else:
        typer.echo(told(found))
        tell({"curves": str(out / "curves.png")}, as_json=False)


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
