import io
import json

from rich.console import Console

from medseg_core import journal as journal_module
from medseg_core import progress
from medseg_core.journal import Journal
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig

CONFIG = TrainConfig(epochs=2)
ROW = {"epoch": 1, "step": 4, "lr": 0.001, "train_loss": 0.5, "val_score": 0.25, "val_dice": 0.25}


def keep(run, *, epochs=1):
    with Journal(run, CONFIG, total=8, start=0) as journal:
        for epoch in range(1, epochs + 1):
            journal.advance(epoch - 1, 0.5)
            journal.close_epoch({**ROW, "epoch": epoch}, samples=16, memory_mb=100.0)


def test_the_clock_stands_in_a_file_of_its_own(tmp_path):
    keep(RunFolder.open(tmp_path / "run", CONFIG))
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == ROW
    timings = json.loads((tmp_path / "run" / "timings.jsonl").read_text())
    assert timings.keys() == {"epoch", "seconds", "samples_per_second", "peak_memory_mb"}


def test_the_log_has_a_line_for_training_and_one_for_validation(tmp_path):
    keep(RunFolder.open(tmp_path / "run", CONFIG))
    train, val = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert train == "Epoch 1 Train loss 0.500 lr 1.0e-03 0 s"
    assert val == "Epoch 1 Eval score 0.250 dice 0.250"


def test_the_curves_are_drawn_at_the_end(tmp_path):
    keep(RunFolder.open(tmp_path / "run", CONFIG), epochs=2)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_that_a_killed_process_left_half_written_does_not_spoil_the_curves(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    (run.path / "metrics.jsonl").write_text(json.dumps(ROW) + '\n{"epoch": 2, "tr')
    keep(run, epochs=0)
    assert (run.path / "curves.png").is_file()


def spoken(monkeypatch, caplog, rank):
    """What a training without a folder shows on a terminal, and the lines it logs, as process `rank` of 2."""
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=terminal, force_terminal=True, width=100))
    for module in (progress, journal_module):
        monkeypatch.setattr(module, "place", lambda: (rank, 2))
    with caplog.at_level("INFO"):
        keep(None)
    return terminal.getvalue(), caplog.messages


def test_the_first_of_several_processes_speaks(monkeypatch, caplog):
    shown, logged = spoken(monkeypatch, caplog, 0)
    assert "Epoch 1/2 loss 0.500" in shown
    assert logged[-1] == "Epoch 1 Eval score 0.250 dice 0.250"


def test_the_others_are_silent(monkeypatch, caplog):
    assert spoken(monkeypatch, caplog, 1) == ("", [])
