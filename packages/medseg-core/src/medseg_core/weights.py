"""What a checkpoint holds, without reading its tensors: card, parameters, sizes; or where a saved state stands."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from medseg_core.checkpoint import Card, build, card_of, read_header, registered
from medseg_core.errors import MedsegError, printable
from medseg_core.screen import size_text

STATE = "state.safetensors"
WIDTH, NUM_NAMED = 100, 6


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """The facts of a weights file or of a saved state.

    Args:
        path: a run folder, which means its best weights, or its state where it has none; a folder of a state; a file.

    Returns:
        `path`, `kind` ("weights" or "state"), `bytes` on disk, `bytes_of_tensors`, `tensors` (how many). Weights add
        `card`, and what the network has as its class builds it: `parameters` (total, trainable, frozen) and `buffers`
        (values); parts that a training froze by itself count as trainable, as no file says so. Where the class is
        not installed these are None, and `unknown` says why. A state adds `epoch`, `step`, `best` (name -> score),
        `ended` (why, or "") and `parts` (name -> values).

    Raises:
        MedsegError: no such file, or none that medseg wrote.
    """
    file = _file(Path(path))
    about, shapes = read_header(file)
    size = file.stat().st_size
    with file.open("rb") as content:  # 8 bytes say how long the header behind them is, the rest are tensors
        num_header = 8 + int.from_bytes(content.read(8), "little")
    facts = {"path": str(file), "bytes": size, "bytes_of_tensors": size - num_header, "tensors": len(shapes)}
    if "position" in about and "package" not in about:
        return {"kind": "state", **facts, **_state_facts(about, shapes)}
    card = card_of(about, str(file))
    return {"kind": "weights", **facts, "card": about, **_network_facts(card, file)}


def checkpoint_screen(facts: Mapping[str, Any]) -> str:
    """The facts in lines of about 100 columns."""
    lines = [facts["path"]]
    for name, text in _state_lines(facts) if facts["kind"] == "state" else _weights_lines(facts):
        lines += textwrap.wrap(printable(text), WIDTH, initial_indent=f"  {name:<12} ", subsequent_indent=" " * 15)
    share = facts["bytes"] / max(facts["bytes_of_tensors"], 1) - 1
    lines.append(f"  {'size':<12} {size_text(facts['bytes'])}, {share:.2%} more than its {facts['tensors']} tensors")
    return "\n".join(lines)


def _file(path: Path) -> Path:
    of_run = (path / "best.safetensors", path / STATE, path / "last" / STATE)
    for file in of_run if path.is_dir() else (path,):
        if file.is_file():
            return file
    raise MedsegError(f"no weights at {path}; give a run folder, or a .safetensors file")


def _network_facts(card: Card, file: Path) -> dict[str, Any]:
    try:
        model = _untrained(card, file)
    except MedsegError as error:
        return {"parameters": None, "buffers": None, "unknown": str(error)}
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = {"total": total, "trainable": trainable, "frozen": total - trainable}
    return {"parameters": counts, "buffers": sum(b.numel() for b in model.buffers()), "unknown": ""}


def _untrained(card: Card, file: Path) -> nn.Module:
    """The network as its class builds it, without memory where the class allows that."""
    models = registered(card.package)[1]
    if card.model not in models:
        raise MedsegError(f"{card.package} as installed has no model {card.model!r}, only {', '.join(models)}")
    try:
        return build(models[card.model], card, file, device="meta")
    except MedsegError:
        return build(models[card.model], card, file)


def _state_facts(about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    position = about["position"] if isinstance(about["position"], Mapping) else {}
    best = position["best"] if isinstance(position.get("best"), Mapping) else {}
    scores = best.get("metrics") or {name: best[name] for name in ("value",) if name in best}
    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.partition("/")[0]
        parts[part] = parts.get(part, 0) + math.prod(shape)
    return {
        "epoch": position.get("epoch"),
        "step": position.get("step"),
        "best": scores if isinstance(scores, Mapping) else {},
        "ended": position.get("reason", ""),
        "parts": parts,
    }


def _weights_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    card = facts["card"]
    yield "network", f"{card['model']} of {card['package']} {card['version']}"
    if card.get("arguments"):
        yield "arguments", _listed(card["arguments"])
    if counts := facts["parameters"]:
        frozen = f", {counts['frozen']:,} of them frozen" if counts["frozen"] else ", none frozen"
        yield "parameters", f"{counts['total']:,}{frozen}; buffers {facts['buffers']:,}"
    else:
        yield "parameters", f"unknown: {facts['unknown']}"
    if card.get("inputs"):
        yield "inputs", ", ".join(card["inputs"])
    if channels := card.get("channels"):
        yield "outputs", f"{len(channels)} channels, {card.get('head', 'none')}"
    if labels := card.get("labels"):
        first = sorted(labels.items(), key=lambda item: int(item[0]))[:NUM_NAMED]
        named = ", ".join(f"{label} {name}" for label, name in first)
        yield "labels", f"{len(labels)}: {named}" + ", ..." * (len(labels) > NUM_NAMED)
    for name in ("grid", "intensity", "chosen"):
        if card.get(name):
            yield name, _listed(card[name])
    yield "weights", {"ema": "averaged over the training"}.get(card.get("weights", "raw"), "as trained, not averaged")


def _state_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    ended = f"ended: {facts['ended']}" if facts["ended"] else "not ended; the run goes on from here with --resume"
    yield "state", f"after epoch {facts['epoch']}, step {_number(facts['step'])}; {ended}"
    best = ", ".join(f"{name} {_number(value)}" for name, value in facts["best"].items())
    yield "best", best or "no score yet"
    yield "holds", ", ".join(f"{part} {num:,}" for part, num in sorted(facts["parts"].items())) + " values"


def _listed(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in table.items())


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
