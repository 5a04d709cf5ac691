"""Damaged and hostile files made of sound ones, and what may become of them: an answer, or one line why not."""

import json
import logging
import math
import os
import resource
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.errors import MedsegError

SECONDS = 10  # of computing, many times what any of the tiny files takes
PATIENCE = 20  # times as long by the clock, for a machine that is busy
MEMORY = 1 << 29  # bytes beyond what the process has; the files are of kilobytes
TRIES = 6  # how often a twist is tried that leaves a file as it was

Rng = np.random.Generator
Twist = Callable[[bytes, Rng], bytes]
Door = Callable[[Path], Any]
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
)
ODD_FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-320, 1e-45, 1e-30, 1e30, 3.4e38, 1.7e308)
ODD_TEXTS = (
    *("", " ", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:\\x", "a\0b", "a\nb", "a\u2028b", "\x1b[31mred"),
    *("a" * 5000, "é" * 150, "\ud800", "\u202e", "none", "NaN", "null", "true", "1_0", "9" * 5000, "CASE A", "-1"),
    *("segmentations", "labels.json", "{}", "%s%n", "<script>alert(1)</script>"),
)


def damage(content: bytes, rng: Rng) -> bytes:
    """One to three things that disks, networks and other programs do to bytes."""
    kinds = (_flip, _overwrite, _cut, _append, _zero, _swap, _repeat, _remove)
    for _ in range(int(rng.integers(1, 4))):
        content = kinds[rng.integers(len(kinds))](content, rng)
    return content


def _flip(content: bytes, rng: Rng) -> bytes:
    data = bytearray(content)
    for at in rng.integers(0, len(data), rng.integers(1, 9)) if data else ():
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _overwrite(content: bytes, rng: Rng) -> bytes:
    first, last = _span(content, rng, most=16)
    return content[:first] + rng.bytes(last - first) + content[last:]


def _cut(content: bytes, rng: Rng) -> bytes:
    return content[: rng.integers(len(content) + 1)]


def _append(content: bytes, rng: Rng) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 64)))


def _zero(content: bytes, rng: Rng) -> bytes:
    first, last = _span(content, rng, most=64)
    return content[:first] + bytes(last - first) + content[last:]


def _swap(content: bytes, rng: Rng) -> bytes:
    a, b, c = sorted(rng.integers(0, len(content) + 1, 3).tolist())
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _repeat(content: bytes, rng: Rng) -> bytes:
    first, last = _span(content, rng, most=256)
    return content[:last] + content[first:last] * int(rng.integers(1, 4)) + content[last:]


def _remove(content: bytes, rng: Rng) -> bytes:
    first, last = _span(content, rng, most=32)
    return content[:first] + content[last:]


def _span(content: bytes, rng: Rng, *, most: int) -> tuple[int, int]:
    first = int(rng.integers(len(content) + 1))
    return first, min(len(content), first + int(rng.integers(1, most)))


def twist_json(content: bytes, rng: Rng) -> bytes:
    """JSON with one value, key or the whole turned into something that nobody meant."""
    tree = json.loads(content)
    places = list(_places(tree))
    holder, key = places[rng.integers(len(places))]
    match int(rng.integers(8)):
        case 0 if isinstance(holder, dict):
            holder[odd_text(rng)] = holder.pop(key)
        case 1:
            del holder[key]
        case 2 if isinstance(holder, dict):  # a key that stands there twice
            text, word = json.dumps(tree), json.dumps(key) + ": "
            at = text.index(word)
            return (text[:at] + word + json.dumps(odd_value(rng)) + ", " + text[at:]).encode()
        case 3:
            holder[key] = [holder[key]]
        case 4:
            deep = int(rng.choice((50, 900, 100_000)))
            text = json.dumps(tree)
            return text.replace(json.dumps(holder[key]), "[" * deep + "]" * deep, 1).encode()
        case _:
            holder[key] = odd_value(rng)
    return wrapped(json.dumps(tree), rng)


def wrapped(text: str, rng: Rng) -> bytes:
    """Text as bytes, now and then in an encoding that nobody meant."""
    code = ("utf-8-sig", "utf-16", "latin-1")[rng.integers(3)] if rng.random() < 0.15 else "utf-8"
    return text.encode(code, "surrogatepass" if code != "latin-1" else "replace")


def odd_value(rng: Rng) -> Any:
    """A number, a text, or a container."""
    others = (None, True, [], {}, [None], {"a": 1}, [[]], [1, "a"], [0.5] * 100)
    return (odd_number(rng), odd_text(rng), others[rng.integers(len(others))])[rng.integers(3)]


def odd_number(rng: Rng) -> float:
    """At the edge of a type, or none at all."""
    numbers = (*ODD_NUMBERS, *ODD_FLOATS)
    return numbers[rng.integers(len(numbers))]


def odd_text(rng: Rng) -> str:
    """What a name must not be."""
    return ODD_TEXTS[rng.integers(len(ODD_TEXTS))]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a tree of lists and dicts."""
    for key, value in list(tree.items()) if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


class Tally(Counter):
    """How often a door answered, and how often it refused in one line."""

    def through(self, door: Door, path: Path, name: str) -> None:
        """Opens a door with a file: it answers or raises one clear MedsegError, quietly, soon and in little memory."""
        before = sorted(path.parent.rglob("*"))
        try:
            with warnings.catch_warnings(record=True) as caught, _Heard() as told, bounded():
                warnings.simplefilter("always")
                self["refused" if _refused(door, path) else "works"] += 1
            heard = [str(w.message) for w in caught if w.category is not ResourceWarning]  # which nobody is shown
            assert not heard, heard
            assert not told.strangers, told.strangers
            assert sorted(path.parent.rglob("*")) == before, "something was left beside the file"
        except Exception as error:
            raise AssertionError(f"{name}, {path.read_bytes()[:2000]!r}") from error


def _refused(door: Door, path: Path) -> bool:
    try:
        door(path)
    except MedsegError as error:
        clear(str(error))
        return True
    return False


def clear(message: str) -> None:
    """One line that a terminal can show and a person can read."""
    assert message.isprintable(), repr(message)
    assert 10 < len(message) < 2000, message
    assert "Traceback" not in message


class _Heard(logging.Handler):
    """Listens to loggers that are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.strangers: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("medseg") and record.levelno >= logging.WARNING:
            self.strangers.append(f"{record.name}: {record.getMessage()}")

    def __enter__(self) -> "_Heard":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger().removeHandler(self)


@contextmanager
def bounded(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Ends what takes too long, and refuses memory beyond a bound."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s of computing, or {seconds * PATIENCE} s")

    size = Path("/proc/self/statm")  # of Linux
    now = int(size.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if size.exists() else 0
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_REAL, seconds * PATIENCE)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        if now:
            resource.setrlimit(resource.RLIMIT_AS, (now + memory, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def changed(content: bytes, twists: Sequence[Twist], rng: Rng) -> bytes:
    """The content after one of the twists, or some damage; never the content itself."""
    for _ in range(TRIES):
        twist = (*twists, damage)[rng.integers(len(twists) + 1)]
        result = twist(content, rng)
        if result != content:
            return result
    return content + b"\0"
