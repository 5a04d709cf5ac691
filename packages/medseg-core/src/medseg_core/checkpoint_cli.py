"""`medseg checkpoint`: flags and one call each."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_core.options import App, Json, Overwrite, tell

app = App("medseg-core", "Weights: what a file holds, other people's files taken over, ONNX.")

Run = Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run folder, or a .safetensors file.")]


@app.command()
def show(run: Run, as_json: Json = False) -> None:
    """Say what RUN holds: the network, its parameters, labels, grid and size; or where a saved state stands."""
    from medseg_core.weights import checkpoint_screen, describe_checkpoint

    facts = describe_checkpoint(run)
    if as_json:
        tell(facts, as_json=True)
    else:
        typer.echo(checkpoint_screen(facts))


@app.command("import")
def import_(
    old: Annotated[Path, typer.Argument(metavar="OLD.pth", help="What torch.save wrote: a state dict, or one inside.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.safetensors", help="Where weights and card go.")],
    kind: Annotated[str, typer.Option("--as", metavar="PACKAGE:MODEL", help="The network: totalseg:unet2d.")],
    card: Annotated[
        list[str] | None,
        typer.Option("--card", metavar="RUN|FILE|JSON", help="Fields of the card, from a run or JSON; later ones win."),
    ] = None,
    arguments: Annotated[
        str, typer.Option("--arguments", metavar="FILE|JSON", help="Of the network: '{\"widths\": [16, 32]}'.")
    ] = "",
    channels: Annotated[
        Path | None,
        typer.Option("--channels", metavar="FILE", help="What each output is: JSON {name: channel}, or a name a line."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="A class list: the id of each of those names.")
    ] = None,
    renames: Annotated[
        Path | None,
        typer.Option("--renames", metavar="FILE", help="JSON {their name or its beginning: ours, or null to drop}."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Take over other people's weights: every tensor of OLD finds its place in the network, or nothing is written.

    OLD is opened for its tensors only; a file that would run code is refused.
    """
    from medseg_core.cards import import_checkpoint

    sources = {"cards": card or (), "arguments": arguments, "channels": channels, "labels": labels, "renames": renames}
    tell(import_checkpoint(old, new, kind, **sources, overwrite=overwrite), as_json=as_json)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Where the network goes.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", metavar="C,H,W", help="An input that the network takes, where the card has none; one for each."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the network as ONNX, with its card, and check it number by number against PyTorch.

    Batch and image size stay free. Needs `pip install 'medseg-core[onnx]'`.
    """
    from medseg_core.export import export_onnx

    tell(export_onnx(run, out, shapes=shape or (), overwrite=overwrite), as_json=as_json)
