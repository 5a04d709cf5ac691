"""Where weights come from before the first update; nothing is loaded in part, and nothing in silence."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from medseg_core.checkpoint import load_weights, read_card, weights_file
from medseg_core.errors import MedsegError
from medseg_sem_al.models import MODELS
from medseg_sem_al.models.encoders import CNNEncoder, ViTEncoder, load_pretrained

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
            _refuse_pickle(Path(file), model)
        if self.init:
            found = load_weights(model, self.init)
            return f"{found.matched} of {found.matched} tensors of {self.init}"
        if self.encoder_init:
            filled, total = load_encoder(model.encoder, self.encoder_init)
            return f"the encoder, {filled:,} of {total:,} values, of {self.encoder_init}"
        if self.pretrained:
            file = None if self.pretrained == HUB else Path(self.pretrained)
            filled, total = load_pretrained(model.encoder, file)
            return f"the encoder, {filled:,} of {total:,} values, of {file or 'the hub of timm'}"
        return "random weights"


def load_encoder(encoder: nn.Module, path: Path) -> tuple[int, int]:
    """Fills the encoder of a network from a run of pre-training or of segmentation, its weights, or a file of timm's.

    Weights of a run must fit in every tensor. A .safetensors without a card is of timm's kind, and may lack what timm
    fills in otherwise (see `load_pretrained`), but not more than a tenth.

    Args:
        encoder: of a `Segmenter`, say.

    Returns:
        How many values were filled, of how many.

    Raises:
        MedsegError: no such weights, or weights of another encoder; both are named.
    """
    file, total = weights_file(path), sum(tensor.numel() for tensor in encoder.state_dict().values())
    try:
        card = read_card(file)
    except MedsegError:
        if isinstance(encoder, (CNNEncoder, ViTEncoder)):
            return load_pretrained(encoder, file)
        card = None
    try:
        load_weights(encoder, file, take="encoder")
    except MedsegError as error:
        if card is None:
            raise
        known = {name: card.arguments[name] for name in ("in_channels", "encoder", "width") if name in card.arguments}
        told = ", ".join(f"{name} {value}" for name, value in known.items())
        raise MedsegError(
            f"{error}. The encoder of {card.model!r} there has {told or 'defaults'}; use the same"
        ) from None
    return total, total


def _refuse_pickle(file: Path, model: nn.Module) -> None:
    if file.suffix in PICKLES:
        kind = next((name for name, cls in MODELS.items() if isinstance(model, cls)), "segmenter")
        files = shlex.join([str(file), str(file.with_suffix(".safetensors"))])
        way = f"medseg checkpoint import {files} --as sem-al:{kind} --card RUN"
        raise MedsegError(f"{file} is of another format; convert it first: {way}")
