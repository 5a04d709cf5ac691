"""The numbers of a cohort as columns: ten thousand cases take megabytes, and read like a list of rows."""

import csv
import io
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.config import strict
from medseg_core.errors import MedsegError
from medseg_core.io import write_text

ABOUT = ("case", "label", "name", "status", "model")


class Rows(Sequence[Mapping[str, Any]]):
    """Rows of `case, label, name, status` and measures, nan where undefined; the name of a whole case is "".

    Structures have one set of measures and whole cases another: a row has all those of its kind.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._cases: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._statuses: dict[str, int] = {}
        self._labels: list[Any] = []
        self._codes = tuple(array("l") for _ in range(3))
        self._values: dict[str, array] = {}
        self._measures: dict[bool, dict[str, None]] = {True: {}, False: {}}
        for row in rows:
            self.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row at the end.

        Raises:
            MedsegError: no case, or a measure that is no number.
        """
        if "case" not in row:
            raise MedsegError(f"a row without `case`: {dict(row)}; every row names the case it belongs to")
        measures = {key: value for key, value in row.items() if key not in ABOUT}
        numbers = {name: _float(value, measures) for name, value in measures.items()}
        words = str(row["case"]), row.get("name", ""), row.get("status", "")
        for codes, known, word in zip(self._codes, (self._cases, self._names, self._statuses), words, strict=True):
            codes.append(known.setdefault(word, len(known)))
        for name, number in numbers.items():
            if name not in self._values:
                self._values[name] = array("d", [math.nan]) * len(self._labels)
            self._values[name].append(number)
        self._labels.append(row.get("label", ""))
        self._measures[bool(row.get("name", ""))] |= dict.fromkeys(measures)
        for values in self._values.values():
            if len(values) < len(self._labels):
                values.append(math.nan)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        case, name, status = (
            words[codes[place]]
            for words, codes in zip((self.cases, self.names, list(self._statuses)), self._codes, strict=True)
        )
        row = {"case": case, "label": self._labels[place], "name": name, "status": status}
        return row | {measure: self._values[measure][place] for measure in self._measures[bool(name)]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        cases, names, statuses = self.cases, self.names, list(self._statuses)
        for place, (case, name, status) in enumerate(zip(*self._codes, strict=True)):
            row = {"case": cases[case], "label": self._labels[place], "name": names[name], "status": statuses[status]}
            yield row | {measure: self._values[measure][place] for measure in self._measures[bool(names[name])]}

    @property
    def cases(self) -> list[str]:
        """Every case once, in the order they came."""
        return list(self._cases)

    @property
    def names(self) -> list[str]:
        """Every structure once ("" for whole cases), in the order they came."""
        return list(self._names)

    @property
    def labels(self) -> Sequence[Any]:
        """(R,) the id of each row, "" where it has none."""
        return self._labels

    def measures(self, *, of_structures: bool) -> tuple[str, ...]:
        """What is known of structures, or of whole cases."""
        return tuple(self._measures[of_structures])

    @property
    def columns(self) -> tuple[str, ...]:
        """All measures, those of structures first."""
        return tuple(self._measures[True] | self._measures[False])

    def column(self, measure: str) -> np.ndarray:
        """(R,) float64, nan where undefined."""
        return np.frombuffer(self._values[measure]) if measure in self._values else np.full(len(self), math.nan)

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """(R,), (R,): place of each row's case in `cases` and of its structure in `names`."""
        return tuple(np.array(codes, np.intp) for codes in self._codes[:2])  # type: ignore[return-value]

    def has_status(self, status: str) -> np.ndarray:
        """(R,) bool."""
        return np.array(self._codes[2], np.intp) == self._statuses.get(status, -1)


def _float(value: Any, measures: Mapping[str, Any]) -> float:
    try:
        return math.nan if value in (None, "") else float(value)
    except (TypeError, ValueError):
        raise MedsegError(f"measures must be numbers, None or empty: {dict(measures)}") from None


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows as comma-separated text; an undefined number is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(strict(row) for row in rows)
    write_text(path, text.getvalue())
