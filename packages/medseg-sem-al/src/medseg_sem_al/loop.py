"""Rounds around a person: ask, wait for the masks, learn, ask again; everything is in files, and a kill costs nothing.

WATCH/round_00/          what was labelled before, or the random pictures that are asked for where nothing was
WATCH/round_NN/          selection.json, selection.png, scores.png, heat/, proposals/, SHA256SUMS as of `query`; images/
WATCH/round_NN/labels/   where a person saves masks, X.png or X.tif
WATCH/round_NN/taken.json    of each mask that was taken its SHA-256, and what was odd about it; refused.json says why
                             others were not
WATCH/round_NN/run/, best.safetensors, score.json    what was learnt of all labels up to there
WATCH/labels/X.png       ids of all labels so far, 255 where there are none; backups/ keeps what was replaced
WATCH/history.json, final_statistics.json, and what `guide` writes
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
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
from medseg_sem_al.guide import write_guide
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.panels import colours_of
from medseg_sem_al.pool import EmptyPoolError, cases_of, score_pool
from medseg_sem_al.proposals import write_indexed
from medseg_sem_al.pseudo import pseudo
from medseg_sem_al.query import POOL, SELECTION, lay_out, written
from medseg_sem_al.query import ask as choose_of
from medseg_sem_al.relabel import relabelled
from medseg_sem_al.returned import Inbox, back_up, check, merged, read_back
from medseg_sem_al.rounds import REFUSED, SCORE, TAKEN, asked, home_of, homes, noted, scores
from medseg_sem_al.serve import served
from medseg_sem_al.settings import LoopConfig, PseudoConfig, QueryConfig, SegConfig
from medseg_sem_al.start import Start
from medseg_sem_al.strategies import plan_of
from medseg_sem_al.sums import changed, write_sums
from medseg_sem_al.train import train

HISTORY, FINAL, SETTINGS = "history.json", "final_statistics.json", "loop.json"
LEARNT = "learnt.json"  # of what labels the round's run is

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
    others = [file for file in watch.glob("*") if not file.name.startswith(".")]
    if others and not (watch / SETTINGS).is_file():
        raise MedsegError(f"{watch} is not empty and holds no loop; choose another --watch")
    with RunFolder(watch).held():
        _begin(watch, index_file, index, config)
        write_guide(watch, index.classes)
        with served(index, watch, port=port) if page else nullcontext() as address:
            if address:
                log.info("Correct masks at %s", address)
            rounds = Rounds(index, watch, config, init)
            while rounds.step(wait=wait):
                pass
    return status(watch)


def _begin(watch: Path, index_file: Path, index: Index, config: LoopConfig) -> None:
    """Notes what the folder is of, or compares."""
    colours = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours_of(index.classes))
    classes = ", ".join(f"{name} {colour}" for name, colour in zip(index.classes.names, colours, strict=True))
    about = {"index": str(Path(index_file).resolve()), "classes": classes, "settings": strict(as_dict(config))}
    about, before = json.loads(json.dumps(about)), noted(watch, SETTINGS)
    if before:
        exact = {f.name for f in LoopConfig.__dataclass_fields__.values() if f.metadata.get("exact", True)}
        other = [name for name in sorted(exact) if before["settings"].get(name) != about["settings"].get(name)]
        what = [f"{name} {before['settings'].get(name)}" for name in other]
        what += [f"the {word} {before[word]}" for word in ("index", "classes") if before[word] != about[word]]
        if what:
            raise MedsegError(f"{watch} was begun with {what[0]}; use the same, or another --watch")
    write_text(watch / SETTINGS, json.dumps(about, indent=1) + "\n")


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
        self.gone: set[str] = set()

    def step(self, *, wait: bool) -> bool:
        """Does what comes next; False where that is nothing, for good or until somebody saves a mask."""
        done = scores(self.watch)
        if done:
            write_text(self.watch / HISTORY, json.dumps(done, indent=1) + "\n")
        number = len(done)
        home = home_of(self.watch, number)
        if any((one / "labels").is_dir() and any((one / "labels").iterdir()) for one in homes(self.watch)):
            self._take_all()
            time.sleep(self.config.poll)  # what is there must be so twice
            self._take_all()
        if not (home / SELECTION).is_file():
            if why := self._ends(number) or self._ask(home, number):
                self._finish(why)
                return False
            (self.watch / FINAL).unlink(missing_ok=True)  # more rounds are asked for than before
        if awaited := self._take(home):
            if not wait:
                return False
            log.info("Round %d: waiting for %s in %s", number, _some(awaited), home / "labels")
            while self._take(home):
                time.sleep(self.config.poll)
        self._learn(home, number)
        return True

    def _take_all(self) -> None:
        """Of every round: masks that came late, or were corrected since, count from the next training on."""
        for home in homes(self.watch):
            self._take(home)

    def index(self) -> Index:
        """The pictures with all labels so far."""
        there = tuple(case for case in self.given.cases if case.files["image"].is_file())
        gone = {case.id for case in self.given.cases} - {case.id for case in there} - self.gone
        for name in sorted(gone):
            log.warning("the picture of %s was deleted; the loop goes on without it", name)
        self.gone |= gone
        files = {case.id: self.labels / f"{case.id}.png" for case in there}
        masks = {name: read_picture(file).pixels for name, file in files.items() if file.is_file()}
        return relabelled(replace(self.given, cases=there), masks, self.labels)

    def _ask(self, home: Path, number: int) -> str:
        """Lays out a round; why there is none, else ""."""
        index, plan = self.index(), plan_of(self.config)
        if number == 0:
            document = self._random(index, home)
        else:
            config = _part(self.config, QueryConfig)
            committee = Committee([home_of(self.watch, number - 1) / "best.safetensors"], config)
            try:
                pool = score_pool(index, committee, plan, config, home / POOL)
            except EmptyPoolError:
                return "everything is labelled"
            chosen = choose_of(pool, plan, config, progress=(number - 1) / max(self.config.rounds - 1, 1))
            document = lay_out(index, committee, pool, chosen, plan, home)
            shutil.rmtree(home / POOL, ignore_errors=True)
        by_id = {case.id: case for case in index.cases}
        for name in dict.fromkeys(row["case"] for row in document["chosen"]):
            file = by_id[name].files["image"]
            with replacing(home / "images" / f"{name}{file.suffix}") as beside:
                shutil.copyfile(file, beside)
        (home / "labels").mkdir(parents=True, exist_ok=True)
        text = json.dumps(strict({**document, "round": number}), indent=1, ensure_ascii=False) + "\n"
        write_sums(home, written(home))
        write_text(home / SELECTION, text)
        return ""

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
        wanted, taken, refused = asked(home), noted(home, TAKEN), noted(home, REFUSED)
        before = (dict(taken), dict(refused))
        cases = {case.id: case for case in self.given.cases}
        for name in wanted:
            if name not in taken and (name not in cases or not cases[name].files["image"].is_file()):
                log.warning("%s was deleted since it was asked for; the round goes on without it", name)
                taken[name] = {"dropped": "its picture was deleted"}
        inbox = self.inboxes.setdefault(home, Inbox(home / "labels"))
        for name, files in inbox.settled().items():
            try:
                digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
                if taken.get(name, {}).get("sha256") == digest:
                    refused.pop(name, None)
                    continue
                ids, odd = self._read(cases, wanted, name, files, home)
            except (MedsegError, OSError) as error:
                log.error("%s: %s", name, error)
                refused[name] = str(error)
                continue
            self._keep(name, ids, wanted[name])
            log.info("%s is taken%s", name, "".join(f"; {text}" for text in odd))
            refused.pop(name, None)
            taken[name] = {"file": files[0].name, "sha256": digest, "odd": odd}
            write_text(home / TAKEN, json.dumps(taken, indent=1) + "\n")
        for name, old, new in ((TAKEN, before[0], taken), (REFUSED, before[1], refused)):
            if new != old:
                write_text(home / name, json.dumps(new, indent=1, ensure_ascii=False) + "\n")
        return [name for name in wanted if name not in taken]

    def _read(
        self,
        cases: Mapping[str, Case],
        wanted: Mapping[str, Sequence[Sequence[int]]],
        name: str,
        files: Sequence[Path],
        home: Path,
    ) -> tuple[np.ndarray, list[str]]:
        """The ids of a mask, and what is odd about it.

        Raises:
            MedsegError: what keeps it from being a label.
        """
        if name not in wanted:
            raise MedsegError(f"it was not asked for in this round; asked are {_some(list(wanted))}")
        if len(files) > 1:
            raise MedsegError(f"{' and '.join(file.name for file in files)} claim one picture; keep one of them")
        classes, notes, boxes = self.given.classes, cases[name].notes, wanted[name]
        ids = read_back(files[0], notes["size"], self.colours, classes, boxes, banner=notes["banner"])
        file = home / "proposals" / f"{name}.png"
        proposal = read_picture(file).pixels if file.is_file() and file not in changed(home) else None
        return ids, check(ids, proposal, boxes, classes.names, unedited=self.config.accept_unedited)

    def _keep(self, name: str, ids: np.ndarray, boxes: Sequence[Sequence[int]]) -> None:
        """Puts a mask among the labels, and the one before it among the backups."""
        place = self.labels / f"{name}.png"
        old = read_picture(place).pixels if place.is_file() else None
        back_up(place, self.watch)
        write_indexed(merged(old, ids, boxes), self.colours, place)

    def _learn(self, home: Path, number: int) -> None:
        """Trains on all labels, from the round before, and writes down how good it is."""
        index = self.index()
        index.write(home / "index.json")
        before = home_of(self.watch, number - 1) / "best.safetensors" if number else self.init
        config, run = _part(self.config, SegConfig, patience=0), home / "run"
        state = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(self.labels.glob("*.png")))).hexdigest()
        if noted(home, LEARNT).get("labels") != state:  # what was begun before a mask was corrected is no use
            for folder in (run, home / "pseudo"):
                shutil.rmtree(folder, ignore_errors=True)
            write_text(home / LEARNT, json.dumps({"labels": state}) + "\n")
        result = train(home / "index.json", run, config, start=Start(init=before), resume="last")
        if self.config.pseudo and result.reason != "stopped" and cases_of(index, 0)[0]:
            taught = _part(self.config, PseudoConfig, patience=0)
            result = pseudo(home / "index.json", home / "pseudo", taught, model=run, resume="last")
            run = home / "pseudo"
        if result.reason == "stopped":
            raise MedsegError("stopped; the same call goes on")
        with replacing(home / "best.safetensors") as beside:
            shutil.copyfile(run / "best.safetensors", beside)
        found = [value for value in read_history(run).get("val_score", []) if value is not None]
        rows = read_json(home / SELECTION)["chosen"]
        labelled = [case for case in index.cases if "label" in case.files and case.split == "train"]
        pixels = sum(np.prod(case.notes["size"]) * case.notes.get("labelled", 1) for case in labelled)
        told = {"round": number, "score": max(found, default=None), "pictures": len(labelled), "pixels": int(pixels)}
        told |= {"asked": [row["case"] for row in rows], "uncertainty": _range(rows)}
        write_text(home / SCORE, json.dumps(strict(told), indent=1) + "\n")

    def _ends(self, number: int) -> str:
        """Why no more is asked; "" where more is."""
        if number == 0:
            return ""
        if number > self.config.rounds:
            return f"all {self.config.rounds} rounds are done"
        found = [row["score"] for row in scores(self.watch)]
        if None in found:
            return ""
        best, since = found[0], 0
        for score in found[1:]:
            since = 0 if score >= best + self.config.min_improvement else since + 1
            best = max(best, score)
        if since >= self.config.patience:
            return f"no gain of {self.config.min_improvement:g} in {self.config.patience} rounds"
        return ""

    def _finish(self, why: str) -> None:
        rows = scores(self.watch)
        found = [row["score"] for row in rows if row["score"] is not None]
        told = {"why": why, "rounds": len(rows) - 1, "pictures": rows[-1]["pictures"], "pixels": rows[-1]["pixels"]}
        told |= {"first": found[0], "last": found[-1], "best": max(found)} if found else {}
        write_text(self.watch / FINAL, json.dumps(told, indent=1) + "\n")
        log.info("Done: %s", why)


def status(watch: Path) -> dict[str, Any]:
    """Labelled so far, score and gain of each round, range of uncertainty, what is awaited and what was refused.

    Raises:
        MedsegError: no loop there.
    """
    watch = Path(watch)
    if not (watch / SETTINGS).is_file():
        raise MedsegError(f"{watch} holds no loop; begin one by medseg sem-al loop INDEX --watch {watch}")
    rows, before = [], None
    for row in scores(watch):
        gain = None if before is None or row["score"] is None else row["score"] - before
        rows.append({**row, "gain": gain})
        before = row["score"]
    told: dict[str, Any] = {"rounds": rows, "awaited": [], "refused": {}, "ended": noted(watch, FINAL).get("why", "")}
    if home := next((home for home in homes(watch) if not (home / SCORE).is_file()), None):
        taken = noted(home, TAKEN)
        told |= {"awaited": [name for name in asked(home) if name not in taken], "save to": str(home / "labels")}
        told["refused"] = noted(home, REFUSED)
    return told


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
