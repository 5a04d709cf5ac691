"""`medseg sem-al`: flags, one config, one call each."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_core.options import App, Json, Out, flags, tell
from medseg_sem_al.settings import IndexConfig

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
