"""The folders of a loop's rounds, in their order; what lies in them stands in `loop`."""

from pathlib import Path
from typing import Any

from medseg_core.run import read_json
from medseg_sem_al.query import SELECTION

SCORE, TAKEN, REFUSED = "score.json", "taken.json", "refused.json"


def home_of(watch: Path, number: int) -> Path:
    """The folder of a round."""
    return watch / f"round_{number:02d}"


def homes(watch: Path) -> list[Path]:
    """Folders of rounds that have asked, the first first."""
    found = [file.parent for file in watch.glob(f"round_*/{SELECTION}")]
    return sorted(found, key=lambda home: int(home.name.removeprefix("round_")))


def scores(watch: Path) -> list[dict[str, Any]]:
    """What rounds that are done wrote down."""
    return [read_json(home / SCORE) for home in homes(watch) if (home / SCORE).is_file()]


def asked(home: Path) -> dict[str, list[list[int]]]:
    """Pictures that a round asks for, and the (top, left, bottom, right) of what is meant of each."""
    found: dict[str, list[list[int]]] = {}
    for row in read_json(home / SELECTION)["chosen"]:
        found.setdefault(row["case"], []).append(row["box"])
    return found


def noted(home: Path, name: str) -> dict[str, Any]:
    """What stands in one of a round's files, {} where there is none yet."""
    return read_json(home / name) if (home / name).is_file() else {}
