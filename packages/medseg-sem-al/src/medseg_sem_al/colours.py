"""What stands in a mask, and which class it is: colours, palettes, greys or indices.

A code is a grey value or index (an int), or a colour (`#rrggbb`); a grey colour is its grey value.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.config import unique
from medseg_core.errors import MedsegError

GREY, OTHER = "grey", "other"
MOST = 16  # values that become classes by themselves
ORIGINAL = {"#0000ff": "carbon", "#00ffff": "SE", "#ff7e7e": "AM"}  # of the original, in the order of its ids
UNSEEN = 255  # id of what nobody looked at: a banner, what lies beyond a picture, what has no label yet
UNLABELLED = "unlabelled"  # the word for it in a table of classes
COLOUR = 1 << 24  # added to packed colours, so that none is a grey value
Code = int | str


@dataclass(frozen=True)
class Classes:
    """Names of classes, and the codes of each.

    Args:
        names: of ids 0, 1, ...
        codes: code -> id; 255 of what has no label yet.
        grey: id of every grey that has none by itself.
        other: id of everything that has none.
        rule: where this comes from.
    """

    names: tuple[str, ...]
    codes: Mapping[Code, int] = field(default_factory=dict)
    grey: int | None = None
    other: int | None = None
    rule: str = ""

    def decode(self, pixels: np.ndarray) -> tuple[np.ndarray, Counter[Code]]:
        """(H, W) uint8 ids of a mask, and how often it has codes that are no class, which are 0 there."""
        packed, places = np.unique(pack(pixels), return_inverse=True)
        counts, table, unknown = np.bincount(places.ravel(), minlength=len(packed)), [], Counter[Code]()
        for value, count in zip(packed.tolist(), counts.tolist(), strict=True):
            number = self.id_of(code_of(value))
            if number is None:
                unknown[code_of(value)] += count
            table.append(number or 0)
        return np.array(table, np.uint8)[places].reshape(pixels.shape[:2]), unknown

    def id_of(self, code: Code) -> int | None:
        """The class of a code; None where it is none."""
        number = self.codes.get(code, self.grey if isinstance(code, int) else None)
        return self.other if number is None else number

    def nearest(self, code: Code) -> str:
        """The class whose colour is closest, with that colour; "" where all classes are rules."""
        if not self.codes:
            return ""
        best = min(self.codes, key=lambda other: float(np.square(np.subtract(rgb(code), rgb(other))).sum()))
        return f"{self._name_of(self.codes[best])} ({best})"

    def as_json(self) -> dict[str, list[Code]]:
        """What `read_classes` reads."""
        table: dict[str, list[Code]] = {name: [] for name in self.names}
        for code, number in self.codes.items():
            table.setdefault(self._name_of(number), []).append(code)
        for word, number in ((GREY, self.grey), (OTHER, self.other)):
            if number is not None:
                table.setdefault(self._name_of(number), []).append(word)
        return table

    def _name_of(self, number: int) -> str:
        return UNLABELLED if number == UNSEEN else self.names[number]


def pack(pixels: np.ndarray) -> np.ndarray:
    """(H, W) int64: grey values as they are, colours as numbers from `COLOUR` on; alpha is left out.

    Raises:
        MedsegError: values that are no whole numbers from 0 on.
    """
    if pixels.dtype.kind not in "uib" or pixels.min(initial=0) < 0:
        raise MedsegError(f"a mask holds whole numbers from 0 on, and this one {pixels.dtype}; is it a picture?")
    whole = pixels.astype(np.int64)
    if whole.ndim == 2:
        return whole
    if whole.shape[2] < 3:
        return whole[..., 0]
    red, green, blue = (whole[..., k] for k in range(3))
    grey = (red == green) & (green == blue)
    return np.where(grey, red, COLOUR + (red << 16) + (green << 8) + blue)


def code_of(packed: int) -> Code:
    """What a packed value is called."""
    return f"#{packed - COLOUR:06x}" if packed >= COLOUR else packed


def rgb(code: Code) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255; an index as a grey."""
    if isinstance(code, int):
        return code, code, code
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def read_classes(file: Path) -> Classes:
    """Classes of a TOML or JSON table `name = code` or `name = [codes]`, in the order of ids.

    A code is `"#rrggbb"`, a grey value or index, `"grey"` for any grey, or `"other"` for anything else. The name
    `unlabelled` is no class: its codes stand for pixels that nobody labelled, which are neither taught nor scored.

    Raises:
        MedsegError: unreadable, no such table, or a code that two classes claim.
    """
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
        table = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text, object_pairs_hook=unique)
    except (OSError, ValueError) as error:
        raise MedsegError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(table, dict) or not table:
        raise MedsegError(f'{file} must be a table of classes: matrix = "grey", crack = "#ff0000"')
    return classes_of(table, str(file))


def classes_of(table: Mapping[str, Any], rule: str) -> Classes:
    """Classes of such a table.

    Raises:
        MedsegError: as `read_classes`.
    """
    codes: dict[Code, int] = {}
    words: dict[str, int] = {}
    names = [name for name in table if name != UNLABELLED]
    for name, given in table.items():
        number = UNSEEN if name == UNLABELLED else names.index(name)
        for code in given if isinstance(given, list) else [given]:
            known = _code(code, name, rule)
            place: dict[Any, int] = words if known in (GREY, OTHER) else codes
            if place.setdefault(known, number) != number:
                first = UNLABELLED if place[known] == UNSEEN else names[place[known]]
                raise MedsegError(f"{rule}: {known} is {first} and {name}; give it to one of them")
    return Classes(tuple(names), codes, words.get(GREY), words.get(OTHER), rule)


def _code(code: Any, name: str, rule: str) -> Code:
    if isinstance(code, int) and not isinstance(code, bool) and code >= 0:
        return code
    if isinstance(code, str):
        text = code.lower()
        if text in (GREY, OTHER):
            return text
        if len(text) == 7 and text[0] == "#" and all(c in "0123456789abcdef" for c in text[1:]):
            red, green, blue = rgb(text)
            return red if red == green == blue else text
    raise MedsegError(f'{rule}: {name} has the code {code!r}; write "#rrggbb", a grey value, "grey" or "other"')


def guessed(counts: Counter[Code]) -> Classes:
    """Classes of what all masks of a data set hold, where nobody said which: few values, each of them a class.

    Args:
        counts: of each code its pixels.

    Raises:
        MedsegError: more than 16 codes, with a table to begin from.
    """
    if set(counts) <= set(ORIGINAL):
        return Classes(tuple(ORIGINAL.values()), {c: n for n, c in enumerate(ORIGINAL)}, rule="colours of the original")
    if len(counts) > MOST:
        raise MedsegError(_too_many(counts))
    codes = sorted(counts, key=lambda code: (isinstance(code, str), sum(rgb(code)), str(code)))
    names = tuple(f"class_{n}" for n in range(len(codes)))
    rule = f"values in order: {', '.join(map(str, codes))}"
    return Classes(names, {code: n for n, code in enumerate(codes)}, rule=rule)


def _too_many(counts: Counter[Code]) -> str:
    colours = [code for code, _ in counts.most_common() if isinstance(code, str)]
    greys, total = len(counts) - len(colours), sum(counts.values())
    told = ", ".join(f"{code} {counts[code] / total:.1%}" for code in colours[:4])
    said = f"the masks hold {len(counts)} values, {greys} of them grey" + (f", and {told}" if told else "")
    parts = ['"matrix": "grey"'] * bool(greys) + [f'"class_{n}": "{code}"' for n, code in enumerate(colours[:4], 1)]
    return f"{said}; say which is which by --colors FILE, {{{', '.join(parts)}}}; a JPEG blurs masks"


def counted(pixels: np.ndarray) -> Counter[Code]:
    """Of each code of a mask its pixels."""
    values, counts = np.unique(pack(pixels), return_counts=True)
    return Counter({code_of(value): num for value, num in zip(values.tolist(), counts.tolist(), strict=True)})
