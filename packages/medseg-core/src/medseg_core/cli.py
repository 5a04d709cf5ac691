"""`medseg`: finds the installed packages and hands over to the one that is named."""

import sys
from functools import cache
from importlib.metadata import EntryPoint, distribution, distributions, entry_points
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from medseg_core.checkpoint_cli import app as checkpoint_app
from medseg_core.errors import MedsegError
from medseg_core.options import Command, Json, Out, Overwrite, flags, tell, tell_failures
from medseg_core.settings import ScoreConfig

GROUP = "medseg.commands"


@cache
def plugins() -> dict[str, EntryPoint]:
    """Command name -> the entry point of the package that brings it."""
    return {point.name: point for point in entry_points(group=GROUP)}


class Umbrella(TyperGroup):
    """Lists every package by its summary and imports one only when it is named."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *sorted(plugins().keys() - self.commands.keys())]

    def get_command(self, ctx: Any, name: str) -> Any:
        if name in self.commands:
            return self.commands[name]
        point = plugins().get(name)
        return TyperCommand(name, help=_summary(point)) if point else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in plugins():
            if name in self.commands:
                typer.echo(f"note: core's own '{name}' hides the one of {_owner(plugins()[name])}", err=True)
            else:
                return name, _load(plugins()[name]), args[1:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Umbrella,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(checkpoint_app, name="checkpoint")


def _show_versions(wanted: bool) -> None:
    if wanted:
        for name in sorted(
            {d.metadata["Name"] for d in distributions() if (d.metadata["Name"] or "").startswith("medseg-")}
        ):
            typer.echo(f"{name} {distribution(name).version}")
        raise typer.Exit


@app.callback()
def main(
    show: Annotated[
        bool, typer.Option("--version", help="Print the versions.", is_eager=True, callback=_show_versions)
    ] = False,
) -> None:
    """Image segmentation in medicine and microscopy; each package brings one command."""


@app.command(cls=Command)
def info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Volumes, series, pictures or label maps.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="A class list; without it the labels.json beside a label map."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what each FILE holds: shape, spacing, orientation, values, labels with volumes, and what looks wrong."""
    from medseg_core.info import describe_each
    from medseg_core.labelmaps import read_labels
    from medseg_core.screen import screen

    found, failed = describe_each(files, labels=read_labels(labels) if labels else None)
    if as_json:
        tell(found, as_json=True)
    elif found:
        typer.echo("\n\n".join(screen(facts) for facts in found))
    tell_failures(failed)


@app.command(cls=Command)
@flags(ScoreConfig)
def evaluate(
    pred: Annotated[Path, typer.Argument(metavar="PRED", help="Masks: a file, or a folder with one a case.")],
    ref: Annotated[Path, typer.Argument(metavar="REF", help="Reference labels, in any of the same forms.")],
    config: ScoreConfig,
    out: Out,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="A class list: JSON {name: id}, or a name a line.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="PRED2", help="Masks of another model, for a paired comparison.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Images to lay under the overlays.")
    ] = None,
    dask: Annotated[
        str, typer.Option("--dask", metavar="ADDRESS", help="Score on a Dask cluster: tcp://HOST:8786.")
    ] = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score masks against labels: tables, intervals over cases, overlays and one offline report.

    NIfTI, NRRD, MetaImage and pictures of ids (PNG, TIFF), folders of a mask a structure, and released cases are taken
    as they are, paired by name. A bad case costs only itself; the same call on an unfinished --out goes on.
    """
    from medseg_core.cohort import dask_executor
    from medseg_core.distributed import place
    from medseg_core.folders import evaluate_folders
    from medseg_core.labelmaps import read_labels

    named = read_labels(labels) if labels else None
    with dask_executor(dask) as executor:
        found, failed = evaluate_folders(
            pred, ref, out, config, labels=named, compare=compare, images=images, executor=executor, overwrite=overwrite
        )
    if place()[0] == 0:  # of many processes one speaks
        tell({**found.headline(), "report": str(out / "report.html")}, as_json=as_json)
    tell_failures(failed)


@app.command(cls=Command)
def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR | RUN RUN...]", help="A folder of runs, or two and more runs.", show_default="runs"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The picture of a comparison: .png, .pdf or .svg.")
    ] = Path("compare.png"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """List the trainings in DIR, the newest first, or compare RUNs: settings that differ, curves in one picture.

    A run is finished, running, broken off, damaged, or was stopped early ("no gain").
    """
    from medseg_core.runs import RUNS, describe_run, find_runs, is_run, others_line, run_table

    folders = folders or [RUNS]
    found: dict[str, Any] = {"others": []}
    if len(folders) > 1:
        from medseg_core.compare import compare_runs, difference_table

        found |= compare_runs(folders, out, overwrite=overwrite)
    elif is_run(folders[0]):
        found["runs"] = [describe_run(folders[0])]
    else:
        found["runs"], found["others"] = find_runs(folders[0])
    if as_json:
        tell(found if len(folders) > 1 else found["runs"], as_json=True)
        return
    if found["runs"]:
        typer.echo(run_table(found["runs"], width=get_terminal_size().columns if sys.stdout.isatty() else 0))
    else:
        typer.echo(f"no run in {folders[0]}")
    if found["others"]:
        typer.echo(others_line(found["others"]))
    if "picture" in found:
        typer.echo(f"\n{difference_table(found)}\n\npicture: {found['picture']}")


def _load(point: EntryPoint) -> Any:
    try:
        return typer.main.get_command(point.load())
    except Exception as error:  # whatever it is, the other packages go on
        return _broken(point, error)


def _broken(point: EntryPoint, error: Exception) -> Any:
    name = _owner(point)

    def tell(**_: Any) -> None:
        reason = f"{name} does not import ({type(error).__name__}: {error})"
        raise MedsegError(f"{reason}; reinstall it: pip install --force-reinstall {name}")

    return Command(
        point.name, callback=tell, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
    )


def _owner(point: EntryPoint) -> str:
    return point.dist.metadata["Name"] if point.dist else point.value


def _summary(point: EntryPoint) -> str:
    return (point.dist.metadata["Summary"] or "") if point.dist else ""
