"""The commands of `medseg sem-al` that ask for labels; see `cli`."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_core.errors import MedsegError
from medseg_core.options import Json, Out, Overwrite, flags, tell, tell_failures
from medseg_sem_al.options import Given, Init
from medseg_sem_al.settings import LoopConfig, QueryConfig, SimulateConfig

CONFIGS = Path(__file__).parent / "configs"


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


@flags(LoopConfig, named=CONFIGS)
def loop(
    config: LoopConfig,
    watch: Annotated[Path, typer.Option("--watch", metavar="DIR", help="The folder that people share.")],
    given: Annotated[Path | None, typer.Argument(metavar="INDEX", help="What index made.", show_default=False)] = None,
    init: Init = None,
    status: Annotated[bool, typer.Option("--status", help="Say where it stands, and stop.")] = False,
    wait: Annotated[bool, typer.Option(help="Without it the call ends where a person is awaited.")] = True,
    serve: Annotated[bool, typer.Option("--serve", help="Open a page on this machine to correct masks on.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of that page; 0 takes a free one.")] = 0,
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
    told = found(watch) if status else run(given, watch, config, init=init, wait=wait, page=serve, port=port)
    if as_json:
        tell(told, as_json=True)
    else:
        typer.echo(rounds_of(told))


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
