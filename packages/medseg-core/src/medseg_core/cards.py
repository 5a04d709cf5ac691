"""A card put together from what a user has, and the checkpoints that it makes of other people's files."""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from medseg_core.checkpoint import Card, build, card_of, read_card, registered
from medseg_core.errors import MedsegError, meant
from medseg_core.foreign import import_foreign
from medseg_core.labelmaps import read_labels

log = logging.getLogger(__name__)


def import_checkpoint(
    old: Path,
    new: Path,
    kind: str,
    *,
    cards: Sequence[str] = (),
    arguments: str = "",
    channels: Path | None = None,
    labels: Path | None = None,
    renames: Path | None = None,
    overwrite: bool = False,
) -> Mapping[str, Any]:
    """`foreign.import_foreign` for a model that is named, with a card made of files or of text.

    Args:
        kind: "PACKAGE:MODEL"; `medseg-` may be left out.
        cards: fields of the card, of a run, a JSON file, or JSON text; later ones win. What `checkpoint show --json`
            prints is one. Before them all comes the `card` of the model's class, where it has one.
        arguments: those of the model's constructor, a JSON file or JSON text. What nobody gives has its default.
        channels: what each output channel is, from 0 on: JSON {name: channel}, a list, or text with a name per line;
            names may end in `.nii.gz`. A first channel "background" means a softmax head, none a sigmoid one.
        labels: a class list that gives each name its id; without it they are numbered in the order of the channels.
        renames: JSON {their name: our name or null}, instead of those of the model's class.

    Returns:
        What was written, how many tensors were matched, and the names of those that were ignored, where any were.

    Raises:
        MedsegError: as `import_foreign`; an unknown model, a card that cannot be, channels that nothing names.
    """
    package, model_name, cls = _find_class(kind)
    own = getattr(cls, "card", {})
    fields = {**own, **_merged(cards)}
    if channels:
        fields |= _channels(channels, read_labels(labels) if labels else None)
    given = (
        {**fields.get("arguments", {}), **_table(arguments, "--arguments")} if arguments else fields.get("arguments")
    )
    fields |= {"package": package, "version": version(package), "model": model_name}
    fields["arguments"] = _all_arguments(cls, given or {}, num_classes=len(fields.get("channels", ())))
    card = card_of(fields, "--card")
    _check_complete(card)
    table = _table(str(renames), "--renames") if renames else None
    model = build(cls, card, Path(old))
    matched = import_foreign(old, new, model, card, renames=table, overwrite=overwrite)
    counts = {"matched_tensors": matched.matched, "parameters": sum(p.numel() for p in model.parameters())}
    counts |= {"ignored": ", ".join(matched.ignored)} if matched.ignored else {}
    return {"written": str(new), **counts, "head": card.head, "channels": len(card.channels)}


def _find_class(kind: str) -> tuple[str, str, type[nn.Module]]:
    package, _, name = kind.partition(":")
    full, models = registered(package)
    if name not in models:
        said = f"{full} has no model {name!r}{meant(name, models)}"
        raise MedsegError(f"{said}; it has {', '.join(models)}: --as {package}:{next(iter(models))}")
    return full, name, models[name]


def _merged(cards: Sequence[str]) -> dict[str, Any]:
    """The fields of all, later ones over earlier ones, but for those that say which network it is of."""
    fields: dict[str, Any] = {}
    for text in cards:
        if not text.lstrip().startswith("{") and not text.endswith(".json"):
            card = read_card(Path(text))
            found = {name: getattr(card, name) for name in vars(card)}
        else:
            found = _table(text, "--card")
            found = found.get("card", found)
        fields |= {
            name: value for name, value in found.items() if name not in ("format", "package", "version", "model")
        }
    return fields


def _table(text: str, flag: str) -> dict[str, Any]:
    """A JSON object, of text or of the file it names."""
    try:
        content = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MedsegError(f"cannot read {flag} {text}: {error.strerror}; give a JSON file or JSON text") from None
    except (ValueError, RecursionError) as error:
        raise MedsegError(f"{flag} {text:.60} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise MedsegError(f"{flag} {text:.60} is a {type(content).__name__}; write {{name: value}}")
    return content


def _channels(path: Path, labels: Mapping[int, str] | None) -> dict[str, Any]:
    names = [name.removesuffix(".gz").removesuffix(".nii") for name in _names_in_order(path)]
    head = "softmax" if names[0].lower() == "background" else "sigmoid"
    structures = names[1:] if head == "softmax" else names
    ids = {name: label for label, name in (labels or dict(enumerate(structures, 1))).items()}
    for name in structures:
        if name not in ids:
            raise MedsegError(f"{path} has a channel {name!r} that --labels lacks{meant(name, ids)}")
    numbers = [ids[name] for name in structures]
    if len(set(numbers)) < len(numbers):
        raise MedsegError(f"{path} gives two channels one name; each needs its own")
    of_head = {"head": head, "channels": [0, *numbers] if head == "softmax" else numbers}
    return {**of_head, "labels": {str(label): name for label, name in sorted(zip(numbers, structures, strict=True))}}


def _names_in_order(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except OSError as error:
        raise MedsegError(f"cannot read --channels {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MedsegError(f"--channels {path} is not valid JSON: {error}") from None
    if isinstance(content, dict):
        content = _in_order(content)
    if not isinstance(content, list) or not any(content) or not all(isinstance(name, str) for name in content):
        raise MedsegError(
            f"--channels {path} must be JSON {{name: channel}} from 0 on without a gap, or a name per line"
        )
    return [name for name in content if name]


def _in_order(channels: Mapping[str, Any]) -> list[str] | None:
    """Names by their channel, from 0 on; from 1 on the first is the background."""
    for first, before in ((0, []), (1, ["background"])):
        if sorted(map(str, channels.values())) == sorted(map(str, range(first, first + len(channels)))):
            return before + sorted(channels, key=lambda name: int(channels[name]))
    return None


def _all_arguments(cls: type[nn.Module], given: Mapping[str, Any], *, num_classes: int) -> dict[str, Any]:
    """Every argument of the constructor that has a value, so that the card holds when a default changes."""
    parameters = inspect.signature(cls).parameters
    for name in given:
        if name not in parameters:
            raise MedsegError(
                f"{cls.__name__} takes no argument {name!r}{meant(name, parameters)}; it takes {', '.join(parameters)}"
            )
    known = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    if num_classes and "num_classes" in parameters:
        known["num_classes"] = num_classes
    return json.loads(json.dumps({**known, **given}))


def _check_complete(card: Card) -> None:
    """A segmenting network's card must say what its channels are; where and of what it was trained is asked for."""
    num_classes = card.arguments.get("num_classes")
    if num_classes is None:
        return
    if card.head == "none" or len(card.channels) != num_classes:
        told = f"the card names {len(card.channels)} channels under head {card.head!r}, the network has {num_classes}"
        raise MedsegError(f"{told}; say what each is: --channels FILE, or --card RUN of a run with the same ones")
    if empty := [name for name in ("inputs", "grid", "intensity") if not getattr(card, name)]:
        fix = "--card RUN takes it from a run, --card FILE.json from what `checkpoint show --json` prints"
        log.warning("the card has no %s, which predicting may need; %s", ", ".join(empty), fix)
