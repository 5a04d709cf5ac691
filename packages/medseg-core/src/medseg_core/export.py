"""A trained network as ONNX, for programs without PyTorch: free batch and image size, checked number by number."""

import dataclasses
import importlib
import inspect
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_core.checkpoint import KEY, Card, load_model, require_torch, weights_file
from medseg_core.errors import MedsegError
from medseg_core.io import replacing

TORCH = (2, 11)
OPSET = 18  # the lowest that PyTorch writes: the oldest programs can read it
CLOSE = 1e-4  # largest difference from PyTorch, as a share of the largest logit
MAX_BYTES = 2**31 - 2**24  # one protocol buffer holds no more
AXES = {1: ("x",), 2: ("height", "width"), 3: ("x", "y", "z")}
OUTPUT = "logits"


def export_onnx(
    run: Path,
    out: Path,
    *,
    shapes: Sequence[str] = (),
    models: Mapping[str, type[nn.Module]] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the network of a run as ONNX, if ONNX Runtime gives PyTorch's numbers with it on two sizes of input.

    Inputs are float32, (batch, C, ...), named by the card or else as `forward` names them; the output is `logits`. The
    card is the model's metadata `medseg`, as JSON. A size must be one that the network itself takes.

    Args:
        run: a run folder or a weights file.
        shapes: "C,H,W" or "C,X,Y,Z" that the network takes, one for all inputs or one each; without, from the card's
            `in_channels` and its `patch` or `size`.
        models: as for `load_model`.
        overwrite: replaces `out`.

    Returns:
        What was written and checked: `max_difference` is the largest from PyTorch, `largest` the largest logit there.

    Raises:
        MedsegError: the packages of `medseg-core[onnx]` are missing, `out` exists, a shape is missing or not taken, the
            network has no form in ONNX, or its numbers differ. Nothing is written then.
    """
    require_torch(TORCH, "ONNX needs a PyTorch whose exporter fits today's onnxscript")
    onnx, runtime = (_needed(name) for name in ("onnx", "onnxruntime"))
    _needed("onnxscript")
    if Path(out).exists() and not overwrite:
        raise MedsegError(f"{out} exists; choose another name, or add --overwrite")
    model, card = load_model(run, models)
    if sum(t.nbytes for t in model.state_dict().values()) > MAX_BYTES:
        raise MedsegError(f"{run} holds more than the 2 GB that one ONNX file can; train a narrower network")
    names = _input_names(model, card)
    sizes = _sizes(model, card, shapes, num_inputs=len(names), file=weights_file(run))
    with replacing(out) as beside:
        _write(onnx, model, sizes, names, card, beside)
        session = runtime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])
        checks = [_compare(session, model, again, names) for again in _other_sizes(model, sizes)]
        worst = max(checks, key=lambda check: check["max_difference"] / check["largest"])
        if not worst["max_difference"] <= CLOSE * worst["largest"]:  # nan fails too
            told = f"{worst['max_difference']:.3g} of {worst['largest']:.3g} on {worst['input']}"
            raise MedsegError(f"ONNX Runtime's logits differ from PyTorch's by {told}; {out} was not written")
        num_bytes = beside.stat().st_size
    shown = {"inputs": ", ".join(names), "output": OUTPUT, "opset": OPSET, "bytes": num_bytes}
    checked = {"checked_on": " and ".join(check["input"] for check in checks)}
    return {"written": str(out), **shown, **checked, **{k: worst[k] for k in ("max_difference", "largest")}}


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MedsegError(f"ONNX needs the package {name}; pip install 'medseg-core[onnx]'") from None


def _input_names(model: nn.Module, card: Card) -> list[str]:
    own = [p.name for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
    return list(card.inputs) if len(card.inputs) == len(own) else own


def _sizes(
    model: nn.Module, card: Card, shapes: Sequence[str], *, num_inputs: int, file: Path
) -> list[tuple[int, ...]]:
    """(C, ...) of each input."""
    found = [_shape(text) for text in shapes] or [_shape_of_card(model, card, file)]
    if len(found) not in (1, num_inputs):
        raise MedsegError(f"{len(found)} shapes for {num_inputs} inputs; give --shape once, or once for each input")
    return found * num_inputs if len(found) == 1 else found


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) - 1 not in AXES or min(shape) < 1:
        raise MedsegError(f"--shape {text!r} must be channels and edges of an image: 1,64,64 or 1,32,32,32")
    return shape


def _shape_of_card(model: nn.Module, card: Card, file: Path) -> tuple[int, ...]:
    channels, size = card.arguments.get("in_channels"), card.grid.get("patch", card.grid.get("size"))
    # the kernel of a convolution has two axes more than it is moved along
    num_axes = next((t.ndim - 2 for t in model.state_dict().values() if t.ndim > 2), 0)
    edges = size if isinstance(size, (list, tuple)) else [size] * num_axes
    if not isinstance(channels, int) or len(edges) not in AXES or not all(isinstance(n, int) and n > 0 for n in edges):
        raise MedsegError(f"{file} does not say which input it takes; give --shape C,H,W, for example --shape 1,64,64")
    return (channels, *edges)


def _other_sizes(model: nn.Module, sizes: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Two batches of inputs (N, C, ...) that between them differ from the traced one on every free axis."""
    wider = [(1, *size[:-1], 2 * size[-1]) for size in sizes]
    other = [(3, size[0], *(n // 2 for n in size[1:])) for size in sizes]
    if not _takes(model, other):
        other = [(3, size[0], *(2 * n for n in size[1:-1]), size[-1]) for size in sizes]
    return [wider, other]


def _takes(model: nn.Module, sizes: Sequence[tuple[int, ...]]) -> bool:
    try:
        with torch.inference_mode():
            model(*(_random(size, seed=0) for size in sizes))
    except Exception:  # each network refuses in its own way
        return False
    return True


def _write(
    onnx: Any, model: nn.Module, sizes: Sequence[tuple[int, ...]], names: Sequence[str], card: Card, path: Path
) -> None:
    inputs = tuple(_random((2, *size), seed=0) for size in sizes)
    free = tuple(dict.fromkeys((0, *range(2, x.ndim)), torch.export.Dim.DYNAMIC) for x in inputs)
    named = {"input_names": list(names), "output_names": [OUTPUT]}
    try:
        with _quiet(), torch.inference_mode():
            model(*inputs)
        with _quiet():
            program = torch.onnx.export(
                model, inputs, dynamo=True, dynamic_shapes=free, opset_version=OPSET, verbose=False, **named
            )
    except MedsegError as error:
        raise MedsegError(f"the network does not take {_told(inputs)}: {error}") from None
    except Exception as error:  # whatever the exporter meets in a network
        raise MedsegError(
            f"the network does not go into ONNX with an input of {_told(inputs)}: {_cause(error)}"
        ) from None
    proto = program.model_proto
    _name_axes(proto, names)
    _forget_origin(proto.graph)
    onnx.helper.set_model_props(proto, {KEY: json.dumps(dataclasses.asdict(card), sort_keys=True)})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _name_axes(proto: Any, names: Sequence[str]) -> None:
    """`s21` becomes `batch`, and so on, wherever it stands."""
    new: dict[str, str] = {}
    for name, value in zip(names, proto.graph.input, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, word in zip((0, *range(2, len(dims))), ("batch", *AXES[len(dims) - 2]), strict=True):
            if not dims[axis].dim_param:
                raise MedsegError(f"the network takes one size only along {word} of {name}; ONNX would be bound to it")
            new.setdefault(dims[axis].dim_param, word)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in new:
                dim.dim_param = new[dim.dim_param]


def _forget_origin(graph: Any) -> None:
    """Where each node comes from: stack traces with the paths of this machine, half of a small file."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


def _compare(session: Any, model: nn.Module, sizes: Sequence[tuple[int, ...]], names: Sequence[str]) -> dict[str, Any]:
    inputs = tuple(_random(size, seed=1 + n) for n, size in enumerate(sizes))
    with torch.inference_mode():
        ours = model(*inputs)
    theirs = torch.from_numpy(session.run([OUTPUT], {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])
    if theirs.shape != ours.shape:
        raise MedsegError(f"ONNX Runtime gives {tuple(theirs.shape)}, PyTorch {tuple(ours.shape)} of {_told(inputs)}")
    difference, largest = float((theirs - ours).abs().max()), float(ours.abs().max())
    return {"input": _told(inputs), "max_difference": difference, "largest": max(largest, math.ulp(1.0))}


def _random(shape: Sequence[int], *, seed: int) -> Tensor:
    """Values from 0 to 1, as images have once they are normalised."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _told(inputs: Sequence[Tensor]) -> str:
    return " and ".join(dict.fromkeys("x".join(map(str, x.shape)) for x in inputs))


def _cause(error: BaseException) -> str:
    """The first line of what went wrong at the bottom, in 200 characters."""
    while error.__cause__:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that are not installed and of itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
