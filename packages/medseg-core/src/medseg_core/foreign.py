"""Other people's .pth files. This is the one place where a pickle is opened, and only for its tensors."""

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_core.checkpoint import Card, Matched, fill, require_torch, save_model
from medseg_core.errors import MedsegError

SAFE = (2, 11)  # of PyTorch
PARTS = ("model_state_dict", "state_dict", "model")  # where training scripts keep the weights
COMPILED, PARALLEL = "_orig_mod.", "module."  # what torch.compile and DataParallel put into names
NUM_NAMED = 3

# what training scripts save beside the weights; it is neither built nor read
_UNREAD = (
    *("numpy.dtype", "numpy.ndarray", "numpy.dtypes.Float32DType", "numpy.dtypes.Float64DType"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath"),
)


def import_foreign(
    old: Path,
    new: Path,
    model: nn.Module,
    card: Card,
    *,
    renames: Mapping[str, str | None] | None = None,
    overwrite: bool = False,
) -> Matched:
    """Takes the tensors of a .pth file over into `model`, every one of them, and writes them to `new` with their card.

    Args:
        old: what `torch.save` made of a state dict, bare or under one of `PARTS`. Prefixes of `torch.compile` and
            DataParallel are taken off; optimizers and numbers beside the weights are left where they are.
        model: of the architecture; its values are replaced. Its `check_foreign(tensors)`, where it has one, sees the
            tensors by the names in the file and may refuse them.
        renames: their name -> ours. A key is a whole name, or the beginning of names up to a dot; of those that fit
            the longest is replaced, once. None drops what it names, "" takes the beginning away. Without it the
            `renames` of the model's class. Weights of a convolution of size 1 also fill a linear layer.
        overwrite: replaces `new`.

    Returns:
        How many tensors were taken, and the names in the file of those that were dropped.

    Raises:
        MedsegError: a file that is no such thing or holds more than plain values, tensors that do not all find their
            place with the same shape, `new` exists. Nothing is written then.
    """
    if Path(new).exists() and not overwrite:
        raise MedsegError(f"{new} exists; choose another name, or add --overwrite")
    if renames is None:
        renames = getattr(type(model), "renames", {})
    values = model.state_dict()
    content, own = read_foreign(old), set(values)
    if check := getattr(model, "check_foreign", None):
        _check_by_model(check, {_unwrapped(name, own): tensor for name, tensor in content.items()}, Path(old))
    tensors = rename(content, renames, own=own, file=Path(old))
    tensors = {name: _laid_out(tensor, values[name]) if name in own else tensor for name, tensor in tensors.items()}
    try:
        matched = fill(model, tensors, Path(old))
    except MedsegError as error:
        theirs = ", ".join(sorted(tensors)[:NUM_NAMED])
        raise MedsegError(f"{error}; the file begins with {theirs}: --arguments or --renames mend it") from None
    save_model(new, model, card)
    dropped = tuple(name for name in content if _renamed(_unwrapped(name, own), renames) is None)
    return replace(matched, ignored=dropped)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of the state dict in a .pth file, by the names they have there, on the CPU.

    Raises:
        MedsegError: PyTorch before 2.11, no such file, damaged, of another kind, with more than plain values in it, or
            without tensors.
    """
    path = Path(path)
    require_torch(SAFE, "before PyTorch 2.10 a .pth file could run code in spite of all checks (CVE-2026-24747)")
    _check_archive(path)
    inert = [(_Unread, name) for name in _UNREAD]
    try:
        with torch.serialization.safe_globals(inert), warnings.catch_warnings(action="ignore"):  # type: ignore[arg-type]
            # no mmap: it trusts the sizes that the file states
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damage makes of a pickle
        raise MedsegError(f"{path} {_why(error)}") from None
    found = next((content[part] for part in PARTS if _has_tensors(content, part)), content)
    tensors = {name: value for name, value in _items(found) if isinstance(value, Tensor)}
    if not tensors:
        top = ", ".join(f"{name}" for name, _ in _items(content)) or f"a {type(content).__name__}"
        raise MedsegError(f"{path} holds no tensors by name, but {top:.200}; save model.state_dict()")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise MedsegError(f"{path}: {name!r} is sparse, quantized or empty of values; save plain tensors")
    return tensors


def rename(
    tensors: Mapping[str, Tensor], renames: Mapping[str, str | None], *, own: Iterable[str], file: Path
) -> dict[str, Tensor]:
    """Tensors by the names that a model's own have; rule as in `import_foreign`.

    Raises:
        MedsegError: two tensors that get one name.
    """
    own, came_from, result = set(own), {}, {}
    for name, tensor in tensors.items():
        ours = _renamed(_unwrapped(name, own), renames)
        if ours is None:
            continue
        if ours in result:
            raise MedsegError(f"{file}: {came_from[ours]!r} and {name!r} both become {ours!r}; mend the renames")
        result[ours], came_from[ours] = tensor, name
    return result


def _unwrapped(name: str, own: set[str]) -> str:
    while name not in own and (COMPILED in name or name.startswith(PARALLEL)):
        name = name.replace(COMPILED, "") if COMPILED in name else name.removeprefix(PARALLEL)
    return name


def _renamed(name: str, renames: Mapping[str, str | None]) -> str | None:
    fitting = [key for key in renames if name == key or name.startswith(f"{key}.")]
    if not fitting:
        return name
    key = max(fitting, key=len)
    new = renames[key]
    return None if new is None else (new + name[len(key) :]).removeprefix(".")


def _check_by_model(check: Callable[[Mapping[str, Tensor]], None], tensors: Mapping[str, Tensor], file: Path) -> None:
    try:
        check(tensors)
    except MedsegError as error:
        raise MedsegError(f"{file}: {error}") from None


def _laid_out(tensor: Tensor, own: Tensor) -> Tensor:
    """With as many axes of length 1 behind as ours has: a convolution of size 1 is a linear layer."""
    short, long = sorted((tuple(tensor.shape), tuple(own.shape)), key=len)
    same = len(short) > 1 and long == short + (1,) * (len(long) - len(short))
    return tensor.reshape(own.shape) if same else tensor


class _Unread:
    """Stands for a value beside the weights: swallows what it is made of."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _check_archive(path: Path) -> None:
    """What can be told from outside: not there, another kind, cut short, or unpacking to more than it weighs."""
    if not path.is_file():
        raise MedsegError(f"no file {path}; give a .pth file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise MedsegError(f"cannot read {path}: {error.strerror}") from None
    if start[8:] == b"{":
        raise MedsegError(f"{path} is a safetensors file, which needs no import; `checkpoint show` says what it holds")
    if start[:2] != b"PK":
        return  # of PyTorch before 1.6: pickles with the values of tensors behind them
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise MedsegError(f"{path} is cut short or damaged ({error}); fetch it again") from None
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise MedsegError(f"{path} is a TorchScript program; save the state_dict of torch.jit.load(...) instead")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise MedsegError(f"{path} is a packed archive, which torch.save does not write; unpack it first")


def _why(error: Exception) -> str:
    told = " ".join(str(error).split())
    if found := re.search(r"GLOBAL ([\w.]+)", told):
        return f"holds {found[1]} and not only tensors, and was not opened, as it may run code; save model.state_dict()"
    told = told.rpartition("WeightsUnpickler error: ")[2] or type(error).__name__
    return f"is no checkpoint of PyTorch, or damaged ({told[:120]}); save or fetch it again"


def _has_tensors(content: Any, part: str) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for _, value in _items(content.get(part)))


def _items(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        yield from ((name, value) for name, value in content.items() if isinstance(name, str))
