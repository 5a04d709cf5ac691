"""Rounds around a person: ask, wait for the masks, learn, ask again; everything is in files, and a kill costs nothing.

WATCH/round_00/          what was labelled before, or the random pictures that are asked for where nothing was
WATCH/round_NN/          selection.json, selection.png, scores.png, heat/, proposals/, SHA256SUMS as of `query`; images/
WATCH/round_NN/labels/   where a person saves masks, X.png or X.tif
WATCH/round_NN/taken.json    of each mask that was taken its SHA-256, and what was odd about it
WATCH/round_NN/run/, best.safetensors, score.json    what was learnt of all labels up to there
WATCH/labels/X.png       ids of all labels so far, 255 where there are none; backups/ keeps what was replaced
WATCH/history.json, final_statistics.json, ANNOTATING.md
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg_core.cases import Case
from medseg_core.config import as_dict, strict
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, replacing, write_text
from medseg_core.run import RunFolder, read_history, read_json
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.committee import Committee
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.panels import colours_of
from medseg_sem_al.pool import cases_of, score_pool
from medseg_sem_al.proposals import write_indexed
from medseg_sem_al.pseudo import pseudo
from medseg_sem_al.query import SELECTION, ask, lay_out, written
from medseg_sem_al.relabel import relabelled
from medseg_sem_al.returned import Inbox, back_up, check, merged, read_back
from medseg_sem_al.serve import served
from medseg_sem_al.settings import LoopConfig, PseudoConfig, QueryConfig, SegConfig
from medseg_sem_al.start import Start
from medseg_sem_al.strategies import plan_of
from medseg_sem_al.sums import write_sums
from medseg_sem_al.train import train

HISTORY, FINAL, SETTINGS, GUIDE = "history.json", "final_statistics.json", "loop.json", "ANNOTATING.md"

log = logging.getLogger(__name__)


def loop(
    index_file: Path,
    watch: Path,
    config: LoopConfig,
    *,
    init: Path | None = None,
    wait: bool = True,
    page: bool = False,
    port: int = 0,
) -> dict[str, Any]:
    """Goes on where the folder stands, until the rounds are done or nothing can be done without a person.

    Args:
        index_file: what `index` made; its labels are taken over, and its files are never written.
        watch: the folder that people share.
        init: a run, with whose weights the first round begins.
        wait: look for masks until they come; without it the call ends where some are awaited.
        page: serve one on which masks can be corrected, at this port of this machine.

    Returns:
        What `status` tells.

    Raises:
        MedsegError: another loop's folder, a loop that runs there, an empty pool, a disk that refuses.
    """
    watch, index = Path(watch), read_index(index_file)
    plan_of(config)  # refuses it before the work
    if len(index.classes.names) < 2:
        raise MedsegError(f"{index_file} knows no two classes; index with --colors FILE, which names them")
    _begin(watch, index_file, config)
    with RunFolder(watch).held(), served(index, watch, port=port) if page else nullcontext() as address:
        if address:
            log.info("Correct masks at %s", address)
        rounds = Rounds(index, watch, config, init)
        while rounds.step(wait=wait):
            pass
    return status(watch)


def _begin(watch: Path, index_file: Path, config: LoopConfig) -> None:
    """Makes the folder, or finds it as this loop left it."""
    about = {"index": str(Path(index_file).resolve()), "settings": json.loads(json.dumps(strict(as_dict(config))))}
    file = watch / SETTINGS
    if file.is_file():
        before = read_json(file)
        exact = {f.name for f in LoopConfig.__dataclass_fields__.values() if f.metadata.get("exact", True)}
        other = [name for name in sorted(exact) if before["settings"].get(name) != about["settings"].get(name)]
        if other or before["index"] != about["index"]:
            what = f"{other[0]} {before['settings'].get(other[0])}" if other else f"the index {before['index']}"
            raise MedsegError(f"{watch} was begun with {what}; use the same, or another --watch")
    elif watch.is_dir() and any(watch.iterdir()):
        raise MedsegError(f"{watch} is not empty and holds no loop; choose another --watch")
    write_text(file, json.dumps(about, indent=1) + "\n")
    write_text(watch / GUIDE, (Path(__file__).parent / GUIDE).read_text(encoding="utf-8"))


class Rounds:
    """The state of a loop, all of it read from its folder.

    Args:
        index: as it was given.
        watch: the folder.
        init: see `loop`.
    """

    def __init__(self, index: Index, watch: Path, config: LoopConfig, init: Path | None) -> None:
        self.given, self.watch, self.config, self.init = index, watch, config, init
        self.colours, self.labels = colours_of(index.classes), watch / "labels"
        for case in index.cases:
            if "label" in case.files and not (self.labels / f"{case.id}.png").is_file():
                write_indexed(index.label(case), self.colours, self.labels / f"{case.id}.png")
        self.inboxes: dict[Path, Inbox] = {}

    def step(self, *, wait: bool) -> bool:
        """Does what comes next; False where that is nothing, for good or until somebody saves a mask."""
        number = len(list(self.watch.glob("round_*/score.json")))
        home = self.watch / f"round_{number:02d}"
        if not (home / SELECTION).is_file():
            if why := self._ends(number):
                self._finish(why)
                return False
            (self.watch / FINAL).unlink(missing_ok=True)  # more rounds are asked for than before
            self._ask(home, number)
        if self._take(home):
            time.sleep(self.config.poll)  # what is there must be so twice
            if (awaited := self._take(home)) and not wait:
                return False
            if awaited:
                log.info("Round %d: waiting for %s in %s", number, _some(awaited), home / "labels")
            while self._take(home):
                time.sleep(self.config.poll)
        self._learn(home, number)
        return True

    def index(self) -> Index:
        """The pictures with all labels so far."""
        there = tuple(case for case in self.given.cases if case.files["image"].is_file())
        files = {case.id: self.labels / f"{case.id}.png" for case in there}
        masks = {name: read_picture(file).pixels for name, file in files.items() if file.is_file()}
        return relabelled(replace(self.given, cases=there), masks, self.labels)

    def _ask(self, home: Path, number: int) -> None:
        index, plan = self.index(), plan_of(self.config)
        if number == 0:
            document = self._random(index, home)
        else:
            config = _part(self.config, QueryConfig)
            before = self.watch / f"round_{number - 1:02d}" / "best.safetensors"
            committee = Committee([before], config)
            pool = score_pool(index, committee, plan, config, home / "pool")
            chosen = ask(pool, plan, config, progress=(number - 1) / max(self.config.rounds - 1, 1))
            document = lay_out(index, committee, pool, chosen, plan, home)
            shutil.rmtree(home / "pool", ignore_errors=True)
        by_id = {case.id: case for case in index.cases}
        for name in dict.fromkeys(row["case"] for row in document["chosen"]):
            file = by_id[name].files["image"]
            with replacing(home / "images" / file.name) as beside:
                shutil.copyfile(file, beside)
        (home / "labels").mkdir(parents=True, exist_ok=True)
        text = json.dumps(strict({**document, "round": number}), indent=1, ensure_ascii=False) + "\n"
        write_sums(home, [file for file in written(home) if file.is_file() and file.name != SELECTION])
        write_text(home / SELECTION, text)

    def _random(self, index: Index, home: Path) -> dict[str, Any]:
        """What is labelled already, or pictures drawn at random, without proposals as nothing is learnt yet."""
        pool, taught = cases_of(index, 0)
        order = np.random.default_rng([self.config.seed, 0, 0, 0]).permutation(len(pool))
        chosen = [] if taught else [pool[place] for place in order[: self.config.initial]]
        if not taught and not chosen:
            raise MedsegError("the index has no pictures without labels, and none with labels to learn from")
        for case in chosen:
            blank = np.full(case.notes["size"], UNSEEN, np.uint8)
            for suffix in (".png", ".tif"):
                write_indexed(blank, self.colours, home / "proposals" / f"{case.id}{suffix}")
        rows = [
            {
                "rank": rank,
                "case": case.id,
                "file": str(case.files["image"]),
                "box": [0, 0, *case.notes["size"]],
                "why": "random",
            }
            for rank, case in enumerate(chosen, 1)
        ]
        return {"asked": len(rows), "pool": len(pool), "failed": {}, "chosen": rows}

    def _take(self, home: Path) -> list[str]:
        """Takes in what came back; names of pictures that are still awaited."""
        rows = read_json(home / SELECTION)["chosen"]
        asked: dict[str, list[list[int]]] = {}
        for row in rows:
            asked.setdefault(row["case"], []).append(row["box"])
        file = home / "taken.json"
        taken = read_json(file) if file.is_file() else {}
        cases = {case.id: case for case in self.given.cases}
        for name in asked:
            if name not in taken and not cases[name].files["image"].is_file():
                log.warning("%s was deleted since it was asked for; the round goes on without it", name)
                taken[name] = {"dropped": "its picture was deleted"}
                write_text(file, json.dumps(taken, indent=1) + "\n")
        inbox = self.inboxes.setdefault(home, Inbox(home / "labels"))
        for name, files in inbox.settled().items():
            try:
                ids, odd = self._read(cases, asked, name, files, home)
            except MedsegError as error:
                log.error("%s: %s", name, error)
                continue
            digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
            if taken.get(name, {}).get("sha256") != digest:
                self._keep(name, ids)
                log.info("%s is taken%s", name, "".join(f"; {text}" for text in odd))
                taken[name] = {"file": files[0].name, "sha256": digest, "odd": odd}
                write_text(file, json.dumps(taken, indent=1) + "\n")
        return [name for name in asked if name not in taken]

    def _read(
        self,
        cases: Mapping[str, Case],
        asked: Mapping[str, Sequence[Sequence[int]]],
        name: str,
        files: Sequence[Path],
        home: Path,
    ) -> tuple[np.ndarray, list[str]]:
        """The ids of a mask, and what is odd about it.

        Raises:
            MedsegError: what keeps it from being a label.
        """
        if name not in asked:
            raise MedsegError(f"it was not asked for in this round; asked are {_some(list(asked))}")
        if len(files) > 1:
            raise MedsegError(f"{' and '.join(file.name for file in files)} claim one picture; keep one of them")
        proposal = read_picture(home / "proposals" / f"{name}.png").pixels
        classes = self.given.classes
        ids = read_back(files[0], cases[name].notes["size"], self.colours, classes)
        return ids, check(ids, proposal, asked[name], classes.names, unedited=self.config.accept_unedited)

    def _keep(self, name: str, ids: np.ndarray) -> None:
        """Puts a mask among the labels, and the one before it among the backups."""
        place = self.labels / f"{name}.png"
        old = read_picture(place).pixels if place.is_file() else None
        back_up(place, self.watch)
        write_indexed(merged(old, ids), self.colours, place)

    def _learn(self, home: Path, number: int) -> None:
        """Trains on all labels, from the round before, and writes down how good it is."""
        index = self.index()
        index.write(home / "index.json")
        before = self.watch / f"round_{number - 1:02d}" / "best.safetensors" if number else self.init
        config, run = _part(self.config, SegConfig, patience=0), home / "run"
        result = train(home / "index.json", run, config, start=Start(init=before), resume="last")
        if self.config.pseudo and result.reason != "stopped" and cases_of(index, 0)[0]:
            taught = _part(self.config, PseudoConfig, patience=0)
            result = pseudo(home / "index.json", home / "pseudo", taught, model=run, resume="last")
            run = home / "pseudo"
        if result.reason == "stopped":
            raise MedsegError("stopped; the same call goes on")
        with replacing(home / "best.safetensors") as beside:
            shutil.copyfile(run / "best.safetensors", beside)
        scores = [value for value in read_history(run).get("val_score", []) if value is not None]
        rows = read_json(home / SELECTION)["chosen"]
        labelled = [case for case in index.cases if "label" in case.files and case.split == "train"]
        pixels = sum(np.prod(case.notes["size"]) * case.notes.get("labelled", 1) for case in labelled)
        told = {"round": number, "score": max(scores, default=None), "pictures": len(labelled), "pixels": int(pixels)}
        told |= {"asked": [row["case"] for row in rows], "uncertainty": _range(rows)}
        write_text(home / "score.json", json.dumps(strict(told), indent=1) + "\n")
        write_text(self.watch / HISTORY, json.dumps(list(_scores(self.watch)), indent=1) + "\n")

    def _ends(self, number: int) -> str:
        """Why no more is asked; "" where more is."""
        if number == 0:
            return ""
        if number > self.config.rounds:
            return f"all {self.config.rounds} rounds are done"
        if not cases_of(self.index(), self.config.region)[0]:
            return "everything is labelled"
        scores = [row["score"] for row in _scores(self.watch)]
        if None in scores:
            return ""
        best, since = scores[0], 0
        for score in scores[1:]:
            since = 0 if score >= best + self.config.min_improvement else since + 1
            best = max(best, score)
        if since >= self.config.patience:
            return f"no gain of {self.config.min_improvement:g} in {self.config.patience} rounds"
        return ""

    def _finish(self, why: str) -> None:
        rows = list(_scores(self.watch))
        scores = [row["score"] for row in rows if row["score"] is not None]
        told = {"why": why, "rounds": len(rows) - 1, "pictures": rows[-1]["pictures"], "pixels": rows[-1]["pixels"]}
        told |= {"first": scores[0], "last": scores[-1], "best": max(scores)} if scores else {}
        write_text(self.watch / FINAL, json.dumps(told, indent=1) + "\n")
        log.info("Done: %s", why)


def status(watch: Path) -> dict[str, Any]:
    """Labelled so far, score and gain of each round, range of uncertainty, and what is awaited.

    Raises:
        MedsegError: no loop there.
    """
    watch = Path(watch)
    if not (watch / SETTINGS).is_file():
        raise MedsegError(f"{watch} holds no loop; begin one by medseg sem-al loop INDEX --watch {watch}")
    rows, before = [], None
    for row in _scores(watch):
        gain = None if before is None or row["score"] is None else row["score"] - before
        rows.append({**row, "gain": gain})
        before = row["score"]
    homes = sorted(
        file.parent for file in watch.glob(f"round_*/{SELECTION}") if not (file.parent / "score.json").is_file()
    )
    told: dict[str, Any] = {"rounds": rows, "awaited": [], "ended": ""}
    if homes:
        taken = read_json(homes[0] / "taken.json") if (homes[0] / "taken.json").is_file() else {}
        asked = dict.fromkeys(row["case"] for row in read_json(homes[0] / SELECTION)["chosen"])
        told |= {"awaited": [name for name in asked if name not in taken], "save to": str(homes[0] / "labels")}
    if (watch / FINAL).is_file():
        told["ended"] = read_json(watch / FINAL)["why"]
    return told


def _scores(watch: Path) -> Iterator[dict[str, Any]]:
    """Of the rounds that are done."""
    return (read_json(file) for file in sorted(watch.glob("round_*/score.json")))


def _range(rows: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Lowest and highest entropy of what was asked for."""
    values = [row["entropy"] for row in rows if "entropy" in row]
    return [min(values), max(values)] if values else None


def _part(config: LoopConfig, cls: Any, **others: Any) -> Any:
    """The settings that another command has too."""
    known = {name: getattr(config, name) for name in cls.__dataclass_fields__ if hasattr(config, name)}
    return cls(**{**known, **others})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
