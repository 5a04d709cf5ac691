"""Typed, frozen settings: one flat dataclass gives flags, file and code the same bounds and the same messages.

Standard library only, so `--help` shows every setting without importing torch.
"""

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from medseg_core.errors import MedsegError, meant

C = TypeVar("C")
DEEPEST = 100  # parts of a dotted name


def setting(default: Any, help: str, *, low: float = -math.inf, high: float = math.inf, exact: bool = True) -> Any:  # noqa: A002
    """A field of a config.

    Args:
        default: a value of the field's type.
        help: one line for `--help`; the default is appended.
        low, high: closed bounds of a number, or of each number of a tuple.
        exact: False for what may change when a run goes on.
    """
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "exact": exact})


def resolve(cls: type[C], given: Mapping[str, Any] | None = None, *, file: Path | None = None) -> C:
    """A checked config: defaults < file < given.

    Args:
        cls: a frozen, keyword-only dataclass of `setting(...)` fields.
        given: values of the field's type, or their text (`"32,64"`, `"none"`); keys are field names.
        file: a .toml or .json file with the same keys.

    Raises:
        MedsegError: an unknown key (with the nearest right name), a value of another type or out of bounds.
    """
    merged = {**(_read(file) if file else {}), **(given or {})}
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in merged:
        if name not in fields:
            raise MedsegError(f"unknown setting {name!r}{meant(name, fields) or '; known are ' + ', '.join(fields)}")
    return cls(**{name: _checked(fields[name], hints[name], value) for name, value in merged.items()})


def as_dict(config: Any) -> dict[str, Any]:
    """The settings as JSON knows them: tuples become lists, floats that are not finite become text."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def strict(value: Any) -> Any:
    """JSON that every reader takes: it has no nan and no infinity, so what is undefined is null."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(..., object_pairs_hook=unique)`: a key that stands there twice is no slip to be passed over.

    Raises:
        ValueError: it names the key; JSON itself would keep the last value.
    """
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice!r} stands there twice")
    return table


def as_toml(config: Any) -> str:
    """Every setting with its help, ready to edit and feed back by `--config`."""
    lines = []
    for field in dataclasses.fields(config):
        value = _plain(getattr(config, field.name))
        lines += [f"# {field.metadata['help']}", f"{field.name} = {json.dumps('none' if value is None else value)}", ""]
    return "\n".join(lines)


def describe(hint: Any) -> str:
    """How a value of this type is written: `INT`, `a|b`, `FLOAT,FLOAT`, `INT,...`; `|none` where it may be left out."""
    kind, optional = _without_none(hint)
    if typing.get_origin(kind) is Literal:
        text = "|".join(typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        text = ",".join("..." if a is Ellipsis else describe(a) for a in typing.get_args(kind))
    else:
        text = {str: "TEXT", int: "INT", float: "FLOAT", bool: "true|false"}[kind]
    return text + "|none" * optional


def written(value: Any) -> str:
    """A value as one would type it after its flag."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(written, value)) if isinstance(value, tuple) else str(value)


def _read(file: Path) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
        if Path(file).suffix == ".json":
            content = json.loads(text, object_pairs_hook=unique)
        else:
            _check_depth(text)
            content = tomllib.loads(text)
    except OSError as error:
        raise MedsegError(f"cannot read settings {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise MedsegError(f"settings {file} are not valid {Path(file).suffix[1:] or 'toml'}: {error}") from None
    if not isinstance(content, dict):
        raise MedsegError(f"settings {file} hold a {type(content).__name__}; write a table of name = value")
    return content


def _check_depth(text: str) -> None:
    """Refuses names such as a.a.a.a of thousands of parts, over which tomllib takes minutes and gigabytes."""
    words = re.split(r"[^\w.\"'-]+", re.sub(r"\.\.+", "", re.sub(r"[ \t]+", "", text)))
    if any(word.count(".") > DEEPEST for word in words):
        raise ValueError(f"a name has more than {DEEPEST} parts")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (kind,) = [a for a in typing.get_args(hint) if a is not type(None)]
        return kind, True
    return hint, False


def _checked(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    kind, optional = _without_none(hint)
    if value is None or (isinstance(value, str) and value.lower() == "none" and not _takes(kind, "none")):
        if optional:
            return None
        raise MedsegError(f"{field.name} must be {describe(hint)}, got none")
    try:
        result = _convert(kind, value)
    except (TypeError, ValueError, OverflowError):
        word = (
            meant(value, typing.get_args(kind)) if isinstance(value, str) and typing.get_origin(kind) is Literal else ""
        )
        raise MedsegError(f"{field.name} must be {describe(hint)}, got {value!r}{word}") from None
    for number in result if isinstance(result, tuple) else (result,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _within(field, number)
    return result


def _takes(kind: Any, word: str) -> bool:
    return kind is str or (typing.get_origin(kind) is Literal and word in typing.get_args(kind))


def _within(field: dataclasses.Field, number: float) -> None:
    low, high = field.metadata["low"], field.metadata["high"]
    if not low <= number <= high:  # nan fails both
        fix = (
            "a number"
            if math.isinf(low) and math.isinf(high)
            else f"at least {low:g}"
            if high == math.inf
            else f"at most {high:g}"
            if low == -math.inf
            else f"between {low:g} and {high:g}"
        )
        raise MedsegError(f"{field.name} must be {fix}, got {number}")


def _convert(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError
        return value
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(typing.get_args(kind), value)
    if kind is bool:
        words = {"true": True, "yes": True, "false": False, "no": False}
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise TypeError
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    if kind is str and re.search("[\0\n\r\ud800-\udfff]", value):  # neither a name nor a path
        raise ValueError
    return kind(value)


def _convert_tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (str, list, tuple)):
        raise TypeError
    parts = [p.strip() for p in value.split(",") if p.strip()] if isinstance(value, str) else list(value)
    kinds = (kinds[0],) * len(parts) if kinds[-1] is Ellipsis else kinds
    if len(parts) != len(kinds):
        raise ValueError
    return tuple(_convert(k, p) for k, p in zip(kinds, parts, strict=True))
