"""The loop as a process, killed by the system in the middle of whatever it does."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medseg_core.io import read_picture, write_picture

OPTIONS = "--width 2 --size 32 --num 2 --rounds 1 --epochs 2 --min-improvement 0 --poll 0.1 --device cpu --pseudo"
COMMAND = [sys.executable, "-c", "from medseg_sem_al.cli import app; app()", "loop"]
STAGES = (
    "round_00/run/last/*",
    "round_01/selection.json",
    "round_01/taken.json",
    "round_01/pseudo/last/*",
    "round_01/score.json",
)


def answer(home, watch):
    """A person saves the masks of all that is asked for."""
    for selection in watch.glob("round_*/selection.json"):
        for row in json.loads(selection.read_text(encoding="utf-8"))["chosen"]:
            place = selection.parent / "labels" / f"{row['case']}.png"
            if not place.exists():
                write_picture(read_picture(home / "all" / "labeled" / place.name), place)


def worked(home, watch, until=None):
    """Runs the command, with a person, to its end or until a file is there; the exit status."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*COMMAND, str(home / "index.json"), "--watch", str(watch), *OPTIONS.split()]
    with subprocess.Popen(command, **quiet, start_new_session=True) as process:
        while process.poll() is None:
            if until and any(watch.glob(until)):
                os.killpg(process.pid, signal.SIGKILL)
            answer(home, watch)
            time.sleep(0.002)
    return process.returncode


def outcome(watch):
    masks = {file.name: read_picture(file).pixels for file in (watch / "labels").iterdir()}
    return masks, json.loads((watch / "history.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_killed_at_each_stage_it_ends_as_if_nothing_had_happened(nine, tmp_path):
    assert worked(nine, tmp_path / "whole") == 0
    watch = tmp_path / "killed"
    assert {worked(nine, watch, stage) for stage in STAGES} == {-signal.SIGKILL}
    assert worked(nine, watch) == 0
    (masks, history), (expected, told) = outcome(watch), outcome(tmp_path / "whole")
    assert history == told
    assert masks.keys() == expected.keys()
    assert all(np.array_equal(masks[name], expected[name]) for name in masks)
