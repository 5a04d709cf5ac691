"""Weights with a card that says what they are, and the state a run goes on from: safetensors and JSON, no pickle."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from medseg_core.errors import MedsegError, meant
from medseg_core.io import replacing

FORMAT = 1
KEY = "medseg"  # the file's one metadata key: several are written in random order


@dataclass(frozen=True, kw_only=True)
class Card:
    """What predicting with the weights needs to know: plain values, no case id, path or time.

    `channels[i]` is the label id of output channel i (0, background, under softmax only).
    """

    package: str
    version: str
    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    head: Literal["softmax", "sigmoid", "none"] = "none"
    channels: tuple[int, ...] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    intensity: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    weights: Literal["raw", "ema"] = "raw"
    format: int = FORMAT


@dataclass(frozen=True)
class Matched:
    """How many tensors found their place, and the names that did not."""

    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def save_model(path: Path, model: nn.Module, card: Card) -> None:
    """Weights and card in one file; equal runs give equal bytes."""
    _write(path, _tensors(model), dataclasses.asdict(card))


def load_model(path: Path, models: Mapping[str, type[nn.Module]] | None = None) -> tuple[nn.Module, Card]:
    """The network that a run or a weights file holds, in eval mode, and its card.

    Args:
        path: a run folder (its `best.safetensors`) or a weights file.
        models: name -> class; None finds the classes of the card's package.

    Raises:
        MedsegError: no such file, no card, an unknown model, or a tensor that does not fit.
    """
    file = _weights_file(path)
    tensors, card = _read(file), read_card(file)
    known = _registered(card.package) if models is None else models
    if card.model not in known:
        owner = f"holds {card.package}'s {card.model!r}"
        raise MedsegError(f"{file} {owner}; here are {', '.join(known) or 'no models'}; use the package that made it")
    try:
        model = known[card.model](**card.arguments)
    except TypeError as error:
        raise MedsegError(
            f"{file}: {card.model!r} of this version does not take the card's arguments: {error}"
        ) from None
    _fill(model, tensors, file)
    return model.eval(), card


def read_card(path: Path) -> Card:
    """The card of a run or of a weights file, without its tensors."""
    file = _weights_file(path)
    fields = _read_meta(file)
    known = {f.name for f in dataclasses.fields(Card)}
    if fields.get("format", FORMAT) > FORMAT or not {"package", "version", "model"} <= fields.keys() <= known:
        raise MedsegError(f"{file}: the card is of another format; update medseg-core, or train again")
    for name in ("inputs", "channels"):
        fields[name] = tuple(fields.get(name, ()))
    fields["labels"] = {int(k): v for k, v in fields.get("labels", {}).items()}
    return Card(**fields)


def load_weights(model: nn.Module, path: Path, *, take: str = "") -> Matched:
    """Fills `model` from another run or weights file; every tensor must find its place.

    Args:
        take: only the tensors whose names start with it, and without it: "encoder." for an encoder.
    """
    file = _weights_file(path)
    prefix = take + "." * bool(take and not take.endswith("."))
    tensors = {k.removeprefix(prefix): v for k, v in _read(file).items() if k.startswith(prefix)}
    if not tensors:
        raise MedsegError(f"{file}: no tensor's name starts with {prefix!r}")
    return _fill(model, tensors, file)


def freeze(module: nn.Module) -> nn.Module:
    """No gradient, and eval mode at every step, so that running statistics stay too."""
    module.frozen = True
    return module.requires_grad_(requires_grad=False).eval()


def train_mode(model: nn.Module) -> None:
    """Train mode for all but the frozen parts."""
    model.train()
    for module in model.modules():
        if getattr(module, "frozen", False):
            module.eval()


def save_state(path: Path, parts: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    """Named groups of tensors and plain values in one file, renamed into place."""
    _write(path, {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}, about)


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `save_state` wrote."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read(path).items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts, _read_meta(path)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's memory by parameter name, so that it survives a reordering of the groups."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_moments(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """The way back from `moments`."""
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name, _, moment = key.rpartition("/")
        like = parameters[name]
        optimizer.state[like][moment] = value if value.ndim == 0 else value.to(like.device)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    content = safetensors.torch.save(plain, {KEY: json.dumps(about, sort_keys=True)})
    with replacing(path) as beside:
        beside.write_bytes(content)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise MedsegError(
            f"{file} is not a readable safetensors file ({error}); give a run folder or its weights"
        ) from None


def _read_meta(file: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(file, "pt") as content:
            fields = json.loads((content.metadata() or {})[KEY])
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise MedsegError(
            f"{file} is not a readable safetensors file ({error}); give a run folder or its weights"
        ) from None
    except KeyError:
        raise MedsegError(f"{file} has no medseg card; only weights that medseg wrote say what they are") from None
    if not isinstance(fields, dict):
        raise MedsegError(f"{file}: the card is a {type(fields).__name__}, not a table")
    return fields


def _weights_file(path: Path) -> Path:
    file = Path(path) / "best.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise MedsegError(f"no weights at {file}; give a run folder that has finished an epoch, or a .safetensors file")
    return file


def _registered(package: str) -> Mapping[str, type[nn.Module]]:
    points = {point.name: point for point in entry_points(group="medseg.models")}
    if package not in points:
        raise MedsegError(f"no installed package registers the models of {package!r}; pip install {package}")
    return points[package].load()


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> Matched:
    own = model.state_dict()
    missing, unexpected = tuple(own.keys() - tensors.keys()), tuple(tensors.keys() - own.keys())
    if missing or unexpected:
        name = sorted(missing or unexpected)[0]
        which = "has no" if missing else "has an unknown"
        counts = f"{len(own) - len(missing)} of {len(own)} tensors match, {len(unexpected)} are unknown"
        raise MedsegError(f"{file} {which} {name!r}{meant(name, tensors if missing else own)}; {counts}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
            raise MedsegError(f"{file}: {name!r} is {shapes}; the settings of the two networks differ")
    model.load_state_dict(dict(tensors))
    return Matched(len(tensors))
