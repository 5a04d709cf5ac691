"""Options that several commands of `medseg sem-al` have."""

from pathlib import Path
from typing import Annotated

import typer

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
