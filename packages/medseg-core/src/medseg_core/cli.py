"""`medseg`: finds the installed packages and hands over to the one that is named."""

from functools import cache
from importlib.metadata import EntryPoint, distribution, distributions, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from medseg_core.errors import MedsegError
from medseg_core.options import Command

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
