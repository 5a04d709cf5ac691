"""Where weights come from before the first update; nothing is loaded in part, and nothing in silence."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medseg_core.checkpoint import load_weights
from medseg_core.errors import MedsegError
from medseg_sem_al.models.encoders import load_pretrained

HUB = "hub"
PICKLES = (".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Start:
    """One of three ways to begin, or none: random weights.

    Args:
        init: a run, or its weights file: all of the network.
        encoder_init: a run of any kind, or its weights file: the encoder alone.
        pretrained: "hub", or a .safetensors of timm's: the encoder alone.
    """

    init: Path | None = None
    encoder_init: Path | None = None
    pretrained: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.init, self.encoder_init, self.pretrained))) > 1:
            raise MedsegError("--init, --encoder-init and --pretrained are three ways to begin; give one of them")

    def fill(self, model: nn.Module) -> str:
        """Fills a network, and says with what.

        Raises:
            MedsegError: no such weights, or weights that do not fit, even in part.
        """
        if file := self.init or self.encoder_init:
            _refuse_pickle(file)
        if self.init:
            found = load_weights(model, self.init)
            return f"{found.matched} of {found.matched} tensors of {self.init}"
        if self.encoder_init:
            found = load_weights(model.encoder, self.encoder_init, take="encoder")
            return f"the encoder, {found.matched} of {found.matched} tensors, of {self.encoder_init}"
        if self.pretrained:
            file = None if self.pretrained == HUB else Path(self.pretrained)
            filled, total = load_pretrained(model.encoder, file)
            return f"the encoder, {filled:,} of {total:,} values, of {file or 'the hub of timm'}"
        return "random weights"


def _refuse_pickle(file: Path) -> None:
    if Path(file).suffix in PICKLES:
        way = (
            f"medseg checkpoint import {file} {Path(file).with_suffix('.safetensors')} --as sem-al:segmenter --card RUN"
        )
        raise MedsegError(f"{file} is of another format; convert it first: {way}")
