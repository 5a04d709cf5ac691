"""How a command is made: flags generated from a config, shared option types, and errors told on one line.

Standard library and typer only, so `--help` stays quick.
"""

import dataclasses
import inspect
import json
import logging
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from medseg_core.config import as_toml, describe, resolve, strict, written
from medseg_core.errors import MedsegError, meant

Out = Annotated[Path, typer.Option("--out", help="Where the results go.", metavar="DIR")]
RunOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="The run folder; without it runs/PACKAGE-VERB-DATE-TIME.",
        metavar="DIR",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Quick = Annotated[bool, typer.Option("--quick", help="A few steps on a few cases: does it run at all?")]
Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]
Splits = Annotated[
    Path | None, typer.Option("--splits", help="A file {seed, unit, train, val, test} of case ids.", metavar="FILE")
]
Resume = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="[CHECKPOINT]",
        help="Go on where the run stopped, or from a kept checkpoint. "
        "Without --out it is the one run of this command in runs/ that broke off.",
        show_default=False,
    ),
]


class Command(TyperCommand):
    """A command whose `MedsegError` is one line on standard error and exit code 2.

    Its help is set by paragraphs: where a docstring breaks its lines does not show.
    """

    def __init__(self, *args: Any, help: str | None = None, **more: Any) -> None:  # noqa: A002
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        super().__init__(*args, help="\n\n".join(" ".join(p.split()) for p in paragraphs) or None, **more)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--print-config" in args:
            for param in self.params:
                param.required = False
        return super().parse_args(ctx, _with_resume_value(args))

    def invoke(self, ctx: Any) -> Any:
        _log_to_stderr()
        try:
            return super().invoke(ctx)
        except MedsegError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(2) from None


class App(typer.Typer):
    """A package's command: `app = App("medseg-near", "Repairs noisy 3D labels.")`, then `@app.command()`."""

    def __init__(self, distribution: str, help: str, **more: Any) -> None:  # noqa: A002
        super().__init__(
            help=help,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_show_locals=False,  # locals may hold a patient's name
            context_settings={"help_option_names": ["-h", "--help"]},
            **more,
        )

        @self.callback()
        def main(
            show: Annotated[
                bool,
                typer.Option("--version", help="Print the version.", is_eager=True, callback=_version(distribution)),
            ] = False,
        ) -> None:
            """The callback keeps an app with one command a group."""

        self.info.help = help

    def command(self, name: str | None = None, **more: Any) -> Callable:
        return super().command(name, cls=Command, **more)


def flags(cls: type, *, named: Path | None = None) -> Callable[[Callable], Callable]:
    """Replaces the parameter annotated with `cls` by one flag per setting, plus `--config FILE` and `--print-config`.

    Args:
        named: a folder of .toml files that a package ships; `--config` takes their names too.

    Flags, file and code pass one `config.resolve`, so they get the same bounds and messages; a flag that is not given
    never hides what the file says. A text option whose default is False, `resume: Resume = False`, is "" when left out.
    """

    def decorate(function: Callable) -> Callable:
        hints = typing.get_type_hints(function, include_extras=True)
        name = next(n for n, hint in hints.items() if hint is cls)
        fields = [f.name for f in dataclasses.fields(cls)]

        def command(*, config_file: Path | None, print_config: bool, **values: Any) -> Any:
            given = {f: values.pop(f) for f in fields}
            file = _found(config_file, named)
            config = resolve(cls, {f: v for f, v in given.items() if v is not None}, file=file)
            if print_config:
                print(as_toml(config))  # noqa: T201
                return None
            return function(**values, **{name: config})

        own = [
            p.replace(annotation=hints[p.name], default=_default(p, hints[p.name]))
            for p in inspect.signature(function).parameters.values()
            if p.name != name
        ]
        command.__signature__ = inspect.Signature([_keyword(p) for p in [*own, *_options(cls, named)]])  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def tell(numbers: Any, *, as_json: bool) -> None:
    """Prints what a command found, a mapping or a list of mappings: as JSON for scripts, else a line each."""
    if as_json:
        print(json.dumps(strict(numbers), indent=2, allow_nan=False))  # noqa: T201
    elif isinstance(numbers, list):
        for entry in numbers:
            print(": ".join(str(value) for value in entry.values() if value != ""))  # noqa: T201
    else:
        _tell_each(numbers)


def _tell_each(numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        text = "undefined" if value != value else f"{value:.4g}" if isinstance(value, float) else value  # noqa: PLR0124
        print(f"{name}: {text}")  # noqa: T201


def tell_result(result: Any, run: Path, *, as_json: bool) -> None:
    """What a training command ends with: where the run is, how it ended, its best scores; of many processes one speaks.

    Args:
        result: `medseg_core.trainer.Result`. One that was stopped ends the command with 143, as the shell says of what
            SIGTERM ended.
    """
    from medseg_core.distributed import place

    if place()[0] == 0:
        scores = {f"best_{name}": value for name, value in result.best.metrics.items()} if result.best else {}
        tell({"run": str(run), "epochs": result.epochs, "ended": result.reason, **scores}, as_json=as_json)
    if result.reason == "stopped":
        typer.echo(f"stopped; the same call with --resume --out {run} goes on", err=True)
        raise typer.Exit(143)


def tell_failures(failed: Mapping[str, str]) -> None:
    """Names every case that failed and why, and ends the command with exit code 2; nothing where none did."""
    for case, why in failed.items():
        print(f"failed: {case}: {why}", file=sys.stderr)  # noqa: T201
    if failed:
        raise typer.Exit(2)


def _found(file: Path | None, named: Path | None) -> Path | None:
    """What `--config` means: a file that is there, else the shipped one of that name."""
    if file is None or named is None or (file.exists() and not file.is_dir()):
        return file
    shipped = _names(named)
    if str(file) in shipped:
        return named / f"{file}.toml"
    if file.suffix:
        return file
    raise MedsegError(
        f"there is no config {str(file)!r}{meant(str(file), shipped)}; take a file or {', '.join(shipped)}"
    )


def _names(named: Path) -> list[str]:
    return sorted(file.stem for file in named.glob("*.toml"))


def _options(cls: type, named: Path | None) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    options = []
    for owner in cls.__mro__:
        panel = (owner.__doc__ or "").split("\n")[0].rstrip(".")
        names = [n for n in vars(owner).get("__annotations__", {}) if n in fields]
        options += [_option(fields.pop(n), hints[n], panel) for n in names]
    shipped = f", or shipped ones: {', '.join(_names(named))}" if named else ""
    text = f"Settings from a .toml or .json file{shipped}; flags win over it."
    file = typer.Option("--config", help=text, metavar="FILE|NAME" if named else "FILE")
    show = typer.Option("--print-config", help="Print all settings as commented TOML and stop.")
    return [
        *options,
        inspect.Parameter(
            "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, file]
        ),
        inspect.Parameter(
            "print_config", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, show]
        ),
    ]


def _option(field: dataclasses.Field, hint: Any, panel: str) -> inspect.Parameter:
    """One setting as a flag that is None when not given; text is converted by `resolve` alone."""
    flag = "--" + field.name.replace("_", "-")
    text = f"{field.metadata['help']} (default {written(field.default) or 'nothing'})"
    shown = {"help": text, "rich_help_panel": panel, "show_default": False}
    if hint is bool:
        kind = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", **shown)]
    else:
        kind = Annotated[str | None, typer.Option(flag, metavar=describe(hint), **shown)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _default(parameter: inspect.Parameter, hint: Any) -> Any:
    return "" if hint == Resume and parameter.default is False else parameter.default


def _keyword(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _with_resume_value(args: Sequence[str]) -> list[str]:
    """`--resume` may stand alone; what follows is its value only where it names a saved state."""
    args, result = list(args), []
    while args:
        arg = args.pop(0)
        if arg == "--resume":
            arg += "=" + (args.pop(0) if args and _is_state(args[0]) else "last")
        result.append(arg)
    return result


def _is_state(text: str) -> bool:
    """A state, the folder of one, a run that holds one, or what is named like them: a mistyped one is no DATA."""
    states = (Path(text) / "state.safetensors", Path(text) / "last" / "state.safetensors")
    named = re.fullmatch(r"last|epoch_\d+|.*\.safetensors", Path(text).name)
    return bool(named) or any(state.is_file() for state in states)


def _version(distribution: str) -> Callable[[bool], None]:
    def show(wanted: bool) -> None:
        if wanted:
            print(distribution, version(distribution))  # noqa: T201
            raise typer.Exit

    return show


class _Stderr(logging.StreamHandler):
    """Writes to what `sys.stderr` is at that moment, so that a progress bar can step aside."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:  # type: ignore[override]
        return sys.stderr


def _log_to_stderr() -> None:
    root = logging.getLogger()
    if not any(isinstance(h, _Stderr) for h in root.handlers):
        root.addHandler(_Stderr())
    for name in [*logging.root.manager.loggerDict, "medseg_core"]:
        if name.startswith("medseg"):
            logging.getLogger(name).setLevel(logging.INFO)
