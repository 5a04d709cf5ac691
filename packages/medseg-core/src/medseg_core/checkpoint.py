"""Weights with a card that says what they are, and the state a run goes on from: safetensors and JSON, no pickle."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
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
from medseg_core.runs import STATE, way_on

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
    """How many tensors found their place, and the names that did not; `ignored` are those that renames drop."""

    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


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
    file = weights_file(path)
    tensors, card = _read(file), read_card(file)
    kind = _class_of(card, models, file)
    try:
        planned: nn.Module | None = build(kind, card, file, device="meta")
    except MedsegError:  # some constructors compute with values, which meta tensors lack
        planned = None
    if planned is not None:  # so that a card that lies about its sizes takes no memory
        _check_fit(planned, tensors, file)
    model = build(kind, card, file)
    fill(model, tensors, file)
    return model.eval(), card


def build(kind: Callable[..., nn.Module], card: Card, file: Path, *, device: str = "cpu") -> nn.Module:
    """The untrained network that a card describes; on "meta" without memory.

    Raises:
        MedsegError: arguments that the class does not take.
    """
    try:
        with torch.device(device):
            return kind(**card.arguments)
    except Exception as error:  # a class may raise anything for an argument of the wrong type
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise MedsegError(
            f"{file}: {card.model!r} of this version does not take the card's arguments: {told}"
        ) from None


def read_card(path: Path) -> Card:
    """The card of a run or of a weights file, without its tensors."""
    file = weights_file(path)
    return card_of(read_header(file)[0], str(file))


def card_of(fields: Mapping[str, Any], where: str) -> Card:
    """A card from its fields as JSON has them.

    Raises:
        MedsegError: a field that is missing, unknown or of another type; it begins with `where`.
    """
    known = {f.name for f in dataclasses.fields(Card)}
    newer = fields.get("format", FORMAT)
    if newer not in range(FORMAT + 1) or not {"package", "version", "model"} <= fields.keys() <= known:
        raise MedsegError(f"{where}: the card is of another format; update medseg-core, or train again")
    for name, value in fields.items():
        if not _FIELDS[name](value):
            raise MedsegError(f"{where}: the card's {name} cannot be {value!r:.80}; it was damaged, or is not medseg's")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Card(**{**plain, "labels": {int(label): name for label, name in fields.get("labels", {}).items()}})


def registered(package: str) -> tuple[str, Mapping[str, type[nn.Module]]]:
    """The full name of an installed package, "totalseg" or "medseg-totalseg", and its models by name."""
    points = {point.name: point for point in entry_points(group="medseg.models")}
    full = package if package in points else f"medseg-{package}"
    if full not in points:
        here = f" (here are {', '.join(sorted(points))})" if points else ""
        # only a package of this family is named in a command: the name may come from anybody's file
        fix = f"pip install {package}" if re.fullmatch(r"medseg-[a-z-]+", package) else "install the one that made it"
        raise MedsegError(f"no installed package registers the models of {package!r}{here}; {fix}")
    return full, points[full].load()


def load_weights(model: nn.Module, path: Path, *, take: str = "") -> Matched:
    """Fills `model` from another run or weights file; every tensor must find its place.

    Args:
        take: only the tensors whose names start with it, and without it: "encoder." for an encoder.
    """
    file = weights_file(path)
    prefix = take + "." * bool(take and not take.endswith("."))
    tensors = {k.removeprefix(prefix): v for k, v in _read(file).items() if k.startswith(prefix)}
    if not tensors:
        raise MedsegError(f"{file}: no tensor's name starts with {prefix!r}")
    return fill(model, tensors, file)


def weights_file(path: Path) -> Path:
    """The weights that a path means: the best of a run folder, or the file itself."""
    file = Path(path) / "best.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise MedsegError(f"no weights at {file}; give a run folder that has finished an epoch, or a .safetensors file")
    return file


def digest(path: Path) -> str:
    """The SHA-256 of those weights: what an output must remember that other weights would make another one of."""
    return hashlib.sha256(weights_file(path).read_bytes()).hexdigest()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> Matched:
    """Gives every tensor of a model its value, or changes none.

    Raises:
        MedsegError: a tensor that is missing, unknown, of another shape, or whole numbers where the model has none; it
            names `file`.
    """
    _check_fit(model, tensors, file)
    model.load_state_dict(dict(tensors))
    return Matched(len(tensors))


def require_torch(least: tuple[int, int], why: str) -> None:
    """Raises a MedsegError that begins with `why` where PyTorch is older than `least`."""
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < least:
        raise MedsegError(f"{why}, this is {torch.__version__}; pip install 'torch>={least[0]}.{least[1]}'")


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
    return parts, read_header(path)[0]


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
    fused = optimizer.defaults.get("fused")
    for key, value in saved.items():
        name, _, moment = key.rpartition("/")
        like = parameters[name]
        # laid out as the parameter: kernels walk over both in the order of memory
        laid = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.ndim else value
        optimizer.state[like][moment] = laid.to(like.device) if fused else laid


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path) as beside:
        beside.touch()
        mode = beside.stat().st_mode  # safetensors leaves what only its owner may read
        try:
            safetensors.torch.save_file(plain, beside, {KEY: json.dumps(about, sort_keys=True)})
        except safetensors.SafetensorError as error:
            raise OSError(f"{error}") from None
        beside.chmod(mode)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, MemoryError, safetensors.SafetensorError) as error:
        raise _unreadable(file, error) from None


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """What a file of weights or of a state says of itself, and the shapes of its tensors, which stay unread.

    Raises:
        MedsegError: no safetensors file, or not one that medseg wrote.
    """
    try:
        with safetensors.safe_open(file, "pt") as content:
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
            fields = json.loads((content.metadata() or {})[KEY])
    except (OSError, MemoryError, safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise _unreadable(file, error) from None
    except KeyError:
        raise MedsegError(f"{file} has no medseg card; only weights that medseg wrote say what they are") from None
    if not isinstance(fields, dict):
        raise MedsegError(f"{file}: the card is a {type(fields).__name__}, not a table")
    return fields, shapes


def _unreadable(file: Path, error: Exception) -> MedsegError:
    foreign = file.suffix in (".pth", ".pt", ".ckpt")
    fix = "take it over with `medseg checkpoint import`" if foreign else "give a run folder or its weights"
    if file.name == Path(STATE).name:
        fix = way_on(file)
    return MedsegError(f"{file} is not a readable safetensors file ({error}); {fix}")


def _class_of(card: Card, models: Mapping[str, type[nn.Module]] | None, file: Path) -> type[nn.Module]:
    known = registered(card.package)[1] if models is None else models
    if card.model not in known:
        told = f"{file} holds {card.model!r} of {card.package!r}; here are {', '.join(known) or 'no models'}"
        raise MedsegError(f"{told}; use the package that made it")
    return known[card.model]


def _check_fit(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
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
        if own[name].is_floating_point() != tensor.is_floating_point():
            kinds = f"{tensor.dtype} in the file, {own[name].dtype} in the model"
            raise MedsegError(f"{file}: {name!r} is {kinds}; the file is damaged, or of another network")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in range(2**16)


def _is_class_list(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        re.fullmatch(r"\d{1,5}", str(label)) and _is_id(int(label)) and _is_text(name) for label, name in value.items()
    )


def _each(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(kind, value))


_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("package", "version", "model"), _is_text),
    **dict.fromkeys(("arguments", "grid", "intensity", "chosen"), _is_table),
    "inputs": _each(_is_text),
    "channels": _each(_is_id),
    "labels": _is_class_list,
    "head": ("softmax", "sigmoid", "none").__contains__,
    "weights": ("raw", "ema").__contains__,
    "format": range(FORMAT + 1).__contains__,
}
