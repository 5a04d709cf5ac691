"""Damaged settings, case lists, splits, class lists, arrays and journals: read, or refused in one line."""

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.fuzzing import Rng, Tally, changed, odd_number, odd_text, odd_value, twist_json, wrapped

from medseg_core.cases import Case, read_cases, read_split, write_cases
from medseg_core.cohort import read_journal
from medseg_core.config import as_dict, as_toml, resolve
from medseg_core.io import write_volume
from medseg_core.labelmaps import read_labels, write_labels
from medseg_core.settings import AugmentConfig, ScoreConfig, TrainConfig
from medseg_core.store import Arrays
from medseg_core.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Everything(AugmentConfig, ScoreConfig, TrainConfig):
    """Every kind of setting there is."""


IDS = ("s0001", "s0002", "é 3")
CASES = [
    {"id": name, "files": {"ct": f"{name}/ct.nii.gz"}, "group": "p", "split": "train", "notes": {"n": [1]}}
    for name in IDS
]
ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
SETTINGS = as_dict(Everything()) | {"flip_axes": [0], "scale_range": [0.9, 1.1], "connectivity": 6}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


SEEDS = {
    "config.json": json.dumps(SETTINGS).encode(),
    "config.toml": as_toml(Everything()).encode(),
    "cases.json": json.dumps({"format": 1, "cases": CASES}).encode(),
    "split.json": json.dumps({"seed": 1, "unit": "case", "train": IDS[:1], "val": IDS[1:2], "test": IDS[2:]}).encode(),
    "labels.json": b'{"1": "liver", "2": "spleen", "7": "rib left 1"}',
    "names.json": b'{"labels": {"background": 0, "liver": 1, "spleen": 2}}',
    "labels.txt": b"# a list\nliver\nspleen\nrib left 1\n",
    "about.json": b'{"format": 1, "arrays": ["image", "label"], "about": {"spacing_mm": [1, 1, 1]}}',
    "image.npy": npy(ARRAY),
    "label.npy": npy(np.asfortranarray(ARRAY)),
    "journal.jsonl": b'{"format": 1, "config": {"a": 1}}\n{"case": "s1", "status": "done", "answer": {"n": 2}}\n',
}


def twist_toml(content: bytes, rng: Rng) -> bytes:
    """One value turned into something that nobody meant, a line twice, or what no line is."""
    lines = content.decode().split("\n")
    n = int(rng.choice([i for i, line in enumerate(lines) if " = " in line]))
    name = lines[n].split(" = ")[0]
    odd = (str(odd_number(rng)), json.dumps(odd_text(rng)), json.dumps(odd_value(rng)), odd_text(rng))[rng.integers(4)]
    deep = int(rng.choice((50, 900, 30_000)))
    also = (f"{name} = {odd}", f"{name} = {odd}", f"{name} = {odd}", f"[{name}]", f"{name}.a = 1")
    also += (f"{name} = {'[' * deep}{']' * deep}", f"{'a.' * deep}b = 1", f"{lines[n]}\n{lines[n]}")
    also += (f"{name} = 1979-05-27",)
    lines[n] = also[rng.integers(len(also))]
    return wrapped("\n".join(lines), rng)


def twist_npy(content: bytes, rng: Rng) -> bytes:
    """The words before an array, which Python reads, with another value."""
    head, rest = content[10:128].decode(), content[128:]
    odd = ("(2, 3, 4, 5)", "(-1, 3)", "()", "'|O'", "'<M8'", "[('a', 'O')]", "'V8'")
    odd += (str(odd_number(rng)), repr(odd_text(rng)[:20]))
    value = re.compile(r"'[^']*'(?=,)|\([^)]*\)|True|False")
    spans = [m.span() for m in value.finditer(head)]
    first, last = spans[rng.integers(len(spans))]
    text = f"{head[:first]}{odd[rng.integers(len(odd))]}{head[last:]}".encode("utf-8", "surrogatepass")
    text = text[:-1].rstrip() + b" " * max(0, 118 - len(text[:-1].rstrip()) - 1) + b"\n"
    return content[:8] + len(text).to_bytes(2, "little") + text + rest


def twists_of(name: str) -> tuple:
    kinds = {".json": twist_json, ".toml": twist_toml, ".npy": twist_npy}
    return (kinds[Path(name).suffix],) * 3 if Path(name).suffix in kinds else ()


def settings(path: Path) -> None:
    """What is accepted comes back from what is written into a run folder."""
    config = resolve(Everything, file=path)
    assert resolve(Everything, as_dict(config)) == config
    again = path.with_suffix(".again.toml")
    again.write_text(as_toml(config), encoding="utf-8")
    assert resolve(Everything, file=again) == config
    again.unlink()


def cases(path: Path) -> None:
    """What is accepted comes back when written, and every id names a file in the folder it is meant for."""
    found = read_cases(path)
    assert len({case.id.casefold() for case in found}) == len(found)
    for case in found:
        file = path.parent / f"{case.id}.nii.gz"
        assert file.parent == path.parent
        write_volume(Volume(np.zeros((1, 1, 1), np.uint8), np.eye(4)), file)
        file.unlink()
        assert all(os.fsencode(place) for place in case.files.values())
    again = path.with_name("again.json")
    write_cases(again, found)
    assert [case.id for case in read_cases(again)] == [case.id for case in found]
    again.unlink()


def split(path: Path) -> None:
    found = read_split(path, [Case(name, {}) for name in IDS])
    assert all(case.split for case in found)


def labels(path: Path) -> None:
    """What is accepted comes back when written, and every name can name a file."""
    found = read_labels(path)
    again = path.with_name("again.json")
    write_labels(again, found)
    assert read_labels(again) == found
    again.unlink()
    assert len({name.casefold() for name in found.values()}) == len(found)
    assert all("/" not in name and len(f".12345678-{name}.nii.gz".encode()) < 256 for name in found.values())


def arrays(path: Path) -> None:
    """What is accepted is an array of numbers, of no more than its file holds."""
    held = Arrays(path.parent)
    assert isinstance(held.about, dict)
    for name in held:
        array = held[name]
        assert array.nbytes <= (path.parent / f"{name}.npy").stat().st_size
        assert array.dtype.kind in "biuf"


def journal(path: Path) -> None:
    assert isinstance(read_journal(path.parent), dict)


DOORS = {"config": settings, "cases": cases, "split": split, "labels": labels, "names": labels}
DOORS |= {"about": arrays, "image": arrays, "label": arrays, "journal": journal}


def beside(folder: Path, name: str) -> None:
    """The whole files that belong to a damaged one."""
    for other in ("about.json", "image.npy", "label.npy") if DOORS[Path(name).stem] is arrays else ():
        (folder / other).write_bytes(SEEDS[other])


def mutations(rng: Rng, num: int, folder: Path) -> Tally:
    tally = Tally()
    for n in range(num):
        name = list(SEEDS)[n % len(SEEDS)]
        place = folder / name.replace(".", "_")
        place.mkdir(exist_ok=True)
        beside(place, name)
        (place / name).write_bytes(changed(SEEDS[name], twists_of(name), rng))
        tally.through(DOORS[Path(name).stem], place / name, name)
    return tally


def test_150_damaged_texts_are_read_or_refused_in_one_line(tmp_path):
    tally = mutations(np.random.default_rng(3), 150, tmp_path)
    assert min(tally.values()) > 15, tally


@pytest.mark.parametrize("name", SEEDS)
def test_the_sound_texts_are_read(tmp_path, name):
    beside(tmp_path, name)
    (tmp_path / name).write_bytes(SEEDS[name])
    DOORS[Path(name).stem](tmp_path / name)
