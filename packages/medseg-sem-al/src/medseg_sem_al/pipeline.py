"""Stages, one after the other, each a run of its own that begins with the best weights of the one before.

```toml
index = "index.json"            # paths are relative to this file
out = "runs/staged"
init = "runs/before"            # or encoder_init, where no stage before gives weights
encoder = "unet"                # any setting of train holds for all stages

[[stages]]
name = "coarse"
datasets = ["a", "b"]
epochs = 20

[[stages]]
name = "fine"
mode = "differential"
datasets = ["c"]
epochs = 10
lr = 5e-5
save = ["best"]
```
A stage begins with its own `init` or `encoder_init`, else the best of the stage before, else `init`, else
`encoder_init` from above, else random weights. What is named and is not there is an error, unless
`fallback = "random"`.
"""

import dataclasses
import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg_core.checkpoint import digest
from medseg_core.config import as_dict, resolve
from medseg_core.errors import MedsegError, meant
from medseg_core.io import write_text
from medseg_core.run import read_json
from medseg_sem_al.index import Index, read_index
from medseg_sem_al.models import MODELS
from medseg_sem_al.settings import SegConfig
from medseg_sem_al.start import Start
from medseg_sem_al.train import card_of, divided, train

DONE = "pipeline.json"
ABOVE = ("index", "out", "init", "encoder_init", "fallback", "stages", "splits")
OF_STAGE = ("name", "init", "encoder_init", "save")
PATHS = ("index", "out", "init", "encoder_init", "splits")
SAVES = ("best", "last", "checkpoint")
KEPT_EVERY = 10  # epochs between kept checkpoints of a stage that saves them
MODES = {"train": "full"}  # the original's word
LENGTH = ("epochs", "patience")  # may change when a run goes on, and yet decide what it is

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One of them.

    Args:
        name: of its run folder below `out`.
        start: where its weights come from; of the stage before, its run.
        save: of `SAVES`; "best" is always kept.
    """

    name: str
    config: SegConfig
    start: Start
    save: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A file of stages, checked."""

    index: Path
    out: Path
    splits: Path | None
    stages: tuple[Stage, ...]
    fallback: bool


def pipeline(file: Path, *, only: str = "", first: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Trains the stages that are not done yet.

    Args:
        only: this stage alone.
        first: the stage to begin with.
        dry_run: check all stages and their weights; train none.

    Returns:
        Of each stage where it began and what it reached.

    Raises:
        MedsegError: a file that is no pipeline, a stage that is not there, weights that are not there or do not fit.
    """
    plan = read_plan(file)
    names = [stage.name for stage in plan.stages]
    for name in filter(None, (only, first)):
        if name not in names:
            raise MedsegError(f"{file} has no stage {name!r}{meant(name, names)}; it has {', '.join(names)}")
    begin = names.index(only or first) if only or first else 0
    chosen = plan.stages[begin : begin + 1] if only else plan.stages[begin:]
    index = read_index(plan.index)
    told = {stage.name: check(stage, plan, index, chosen) for stage in chosen}
    if dry_run:
        return told
    return {stage.name: f"{told[stage.name]}: {_trained(stage, plan)}" for stage in chosen}


def read_plan(file: Path) -> Plan:
    """The stages of a TOML file.

    Raises:
        MedsegError: unreadable, an unknown key, two stages of one name, or a setting out of bounds.
    """
    file = Path(file)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise MedsegError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    for name in ("index", "out", "stages"):
        if not table.get(name):
            raise MedsegError(f"{file} says no {name}; it needs index, out, and [[stages]] with a name each")
    if not isinstance(table["stages"], list) or not all(isinstance(entry, dict) for entry in table["stages"]):
        raise MedsegError(f"{file} has stages that are no tables; begin each with [[stages]], in two brackets")
    _check_keys(table, ABOVE, str(file))
    if table.get("fallback") not in (None, "random"):
        raise MedsegError(f'{file}: fallback is {table["fallback"]!r}; it can be "random", or be left out')
    shared = {name: value for name, value in table.items() if name not in ABOVE}
    home = file.parent
    out, stages = home / table["out"], []
    for number, entry in enumerate(table["stages"]):
        before = stages[-1].name if stages else ""
        stages.append(_stage(entry, number, shared, table, home, out / before if before else None))
    names = [stage.name for stage in stages]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise MedsegError(f"{file} has two stages {twice!r}; each needs a name of its own")
    splits = home / table["splits"] if table.get("splits") else None
    return Plan(home / table["index"], out, splits, tuple(stages), table.get("fallback") == "random")


def _check_keys(given: Mapping[str, Any], more: Sequence[str], where: str) -> None:
    """Only settings of train and `more`, of which those that are paths are text."""
    known = (*more, *(field.name for field in dataclasses.fields(SegConfig)))
    for key, value in given.items():
        if key not in known:
            raise MedsegError(
                f"{where}: unknown setting {key!r}{meant(key, known) or '; known are ' + ', '.join(known)}"
            )
        if key in PATHS and not isinstance(value, str):
            raise MedsegError(f"{where}: {key} is {value!r}; write a path as text")


def _stage(
    entry: Mapping[str, Any],
    number: int,
    shared: Mapping[str, Any],
    above: Mapping[str, Any],
    home: Path,
    before: Path | None,
) -> Stage:
    name = entry.get("name")
    if not isinstance(name, str) or not name or Path(name).name != name or name.startswith("."):
        raise MedsegError(f"stage {number + 1} has the name {name!r}; give one that can be a folder")
    _check_keys(entry, OF_STAGE, f"stage {name!r}")
    given = {**shared, **{key: value for key, value in entry.items() if key not in OF_STAGE}}
    if given.get("mode") in tuple(MODES):
        given["mode"] = MODES[given["mode"]]
    save = entry.get("save", ["best", "last"])
    save = tuple(save) if isinstance(save, list) else (save,)
    if wrong := [str(word) for word in save if word not in SAVES]:
        raise MedsegError(f"stage {name!r} saves {wrong[0]!r}{meant(wrong[0], SAVES)}; take of {', '.join(SAVES)}")
    if "checkpoint" in save:
        given.setdefault("save_every", KEPT_EVERY)
    own = {key: home / entry[key] for key in ("init", "encoder_init") if entry.get(key)}
    key = next((key for key in ("init", "encoder_init") if above.get(key)), "")
    start = own or ({"init": before} if before else {key: home / above[key]} if key else {})
    try:
        return Stage(name, resolve(SegConfig, given), Start(**start), save)
    except MedsegError as error:
        raise MedsegError(f"stage {name!r}: {error}") from None


def check(stage: Stage, plan: Plan, index: Index, chosen: Sequence[Stage]) -> str:
    """Where a stage will begin, after its data and its weights were seen to fit.

    Raises:
        MedsegError: nothing to train on, or weights that are not there or do not fit.
    """
    try:
        cases = divided(index, stage.config.datasets, plan.splits, plan.index)
    except MedsegError as error:
        raise MedsegError(f"stage {stage.name!r}: {error}") from None
    num = sum(case.split == "train" for case in cases)
    if not num:
        raise MedsegError(f"stage {stage.name!r} has no labelled picture to train on; see its datasets")
    told = f"{num} pictures"
    card = card_of(index, cases, stage.config)
    earlier = {plan.out / other.name: other for other in chosen[: chosen.index(stage)]}
    if before := earlier.get(stage.start.init):
        theirs = card_of(index, cases, before.config)
        if (theirs.model, theirs.arguments) != (card.model, card.arguments):
            said = f"stage {stage.name!r} has another network than {before.name!r}, whose weights it begins with"
            raise MedsegError(f"{said}; give both the same encoder, decoder and width, or {stage.name!r} its own init")
        return f"{told}, from the best of {before.name}"
    torch.manual_seed(stage.config.seed)
    return f"{told}, from {_filled(stage, plan, MODELS[card.model](**card.arguments))}"


def _filled(stage: Stage, plan: Plan, model: torch.nn.Module) -> str:
    try:
        return stage.start.fill(model)
    except MedsegError as error:
        named = stage.start.init or stage.start.encoder_init
        if plan.fallback and named and not Path(named).exists():
            return f"random weights, as {named} is not there"
        fix = 'correct it, or ask for fallback = "random"' if named and not Path(named).exists() else "correct it"
        raise MedsegError(f"stage {stage.name!r}: {error}; {fix}") from None


def _trained(stage: Stage, plan: Plan) -> str:
    """What a stage reached; it is trained where that is not known yet."""
    file, folder, start = plan.out / DONE, plan.out / stage.name, stage.start
    named = start.init or start.encoder_init
    if plan.fallback and named and not Path(named).exists():
        start = Start()
    known = read_json(file) if file.is_file() else {}
    now = {"start": _weights_of(start), "config": _deciding(stage.config)}
    before = known.get(stage.name, {}) if folder.is_dir() else {}
    is_done = "told" in before
    if before and (before["start"] != now["start"] or (is_done and before["config"] != now["config"])):
        said = f"{folder} was trained with other settings, or from other weights"
        raise MedsegError(f"{said}; remove that folder to train it again, or give another out")
    if is_done:
        return f"{before['told']} (done before)"
    write_text(file, json.dumps({**known, stage.name: now}, indent=1) + "\n")
    log.info("Stage %s", stage.name)
    result = train(plan.index, folder, stage.config, start=start, splits=plan.splits, resume="last")
    if result.reason == "stopped":
        raise MedsegError(f"stopped in stage {stage.name!r}; the same call goes on")
    told = f"mean IoU {result.best.value:.3f} after {result.epochs} epochs" if result.best else "trained, not validated"
    write_text(file, json.dumps({**known, stage.name: {**now, "told": told}}, indent=1) + "\n")
    if "last" not in stage.save:  # once that is known: without it a run cannot go on
        (folder / "last" / "state.safetensors").unlink(missing_ok=True)
    return told


def _weights_of(start: Start) -> dict[str, str]:
    """Where a stage begins, by what is in the file, wherever it lies."""
    named = {key: getattr(start, key) for key in ("init", "encoder_init")}
    return {key: digest(file) for key, file in named.items() if file}


def _deciding(config: SegConfig) -> dict[str, Any]:
    """The settings that decide what is learnt; not the device, nor how many processes load."""
    fields = {field.name: field.metadata["exact"] for field in dataclasses.fields(config)}
    return {name: value for name, value in as_dict(config).items() if fields[name] or name in LENGTH}
