import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from medseg_core.errors import MedsegError
from medseg_core.options import App, Json, Out, Resume, RunOut, flags, tell, tell_result
from medseg_core.settings import TrainConfig

app = App("medseg-core", "A command to test with.")
seen = {}


@app.command()
@flags(TrainConfig)
def train(data: Path, config: TrainConfig, out: Out, resume: Resume = "") -> None:
    """Learn from DATA."""
    seen.update(data=data, config=config, out=out, resume=resume)


@app.command()
def fit(out: RunOut = None, resume: Resume = "") -> None:
    """Learn from nothing."""
    seen.update(out=out, resume=resume)


@app.command()
def fail(as_json: Json = False) -> None:
    """Always in vain."""
    tell({"dice": 0.5}, as_json=as_json)
    raise MedsegError("patch 100 must be a multiple of 16; try 96")


def shipping(folder):
    """A command beside which `folder` is shipped."""
    other = App("medseg-core", "With configs.")

    @other.command()
    @flags(TrainConfig, named=folder)
    def train(config: TrainConfig) -> None:
        seen.update(config=config)

    @other.command()
    def more() -> None: ...

    return other


@pytest.fixture
def shipped(tmp_path):
    (tmp_path / "shipped").mkdir()
    for name, lr in (("quick", 0.25), ("slow", 0.125)):
        (tmp_path / "shipped" / f"{name}.toml").write_text(f"lr = {lr}\n")
    return tmp_path / "shipped"


def call(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_a_flag_equal_to_the_default_still_wins_over_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("lr = 0.5\nepochs = 3\n")
    result = call("train", "D", "--out", "O", "--config", tmp_path / "c.toml", "--lr", "0.001")
    assert result.exit_code == 0, result.output
    assert (seen["config"].lr, seen["config"].epochs) == (0.001, 3)


def test_an_error_is_one_line_on_stderr_and_exit_code_2():
    result = call("fail")
    assert result.exit_code == 2
    assert result.stderr == "error: patch 100 must be a multiple of 16; try 96\n"


def test_a_bad_flag_value_gets_the_message_of_resolve():
    result = call("train", "D", "--out", "O", "--schedule", "cosin")
    assert result.exit_code == 2
    assert "did you mean 'cosine'?" in result.stderr


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--resume=old.safetensors"], ["--resume", "old.safetensors"]])
def test_resume_stands_alone_or_takes_a_checkpoint(flag):
    assert call("train", *flag, "D", "--out", "O").exit_code == 0
    assert seen["data"] == Path("D")
    assert seen["resume"] == {0: "", 1: "last"}.get(
        len(flag) if flag != ["--resume=old.safetensors"] else 2, "old.safetensors"
    )


@pytest.mark.parametrize("path", ["last", "RUN/last", "RUN/checkpoints/epoch_0007"])
def test_a_checkpoint_that_is_not_there_is_not_taken_for_data(path):
    assert call("train", "D", "--resume", path, "--out", "O").exit_code == 0
    assert (seen["resume"], seen["data"]) == (path, Path("D"))


def test_resume_takes_a_run_folder_that_holds_a_state_and_no_other_folder(tmp_path):
    for name in ("run/last", "DATA"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run" / "last" / "state.safetensors").touch()
    assert call("train", "D", "--resume", tmp_path / "run", "--out", "O").exit_code == 0
    assert seen["resume"] == str(tmp_path / "run")
    assert call("train", "--resume", tmp_path / "DATA", "--out", "O").exit_code == 0
    assert (seen["resume"], seen["data"]) == ("last", tmp_path / "DATA")


@pytest.mark.parametrize(("words", "out"), [((), None), (("--out", "mine"), Path("mine"))])
def test_a_run_may_be_left_to_name_itself(words, out):
    assert call("fit", *words).exit_code == 0
    assert seen["out"] == out


def test_help_says_where_a_run_goes_and_which_one_goes_on(monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    text = call("fit", "--help").output
    assert "runs/PACKAGE-VERB-DATE-TIME" in text
    assert "Without --out it is the one run of this command in runs/ that broke off" in text


def test_every_setting_is_a_flag_with_its_default_in_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = call("train", "--help").output
    assert "--batch-size" in text
    assert "(default 8)" in text
    assert "constant|cosine|poly|plateau|multistep" in text


def test_print_config_needs_no_arguments_and_feeds_back(tmp_path):
    result = call("train", "--print-config", "--epochs", "7")
    (tmp_path / "c.toml").write_text(result.stdout)
    assert call("train", "D", "--out", "O", "--config", tmp_path / "c.toml").exit_code == 0
    assert seen["config"].epochs == 7


def test_json_is_json():
    assert json.loads(call("fail", "--json").stdout) == {"dice": 0.5}


@pytest.mark.parametrize(("reason", "code"), [("finished", 0), ("stopped", 143)])
def test_a_training_ends_with_its_run_its_scores_and_143_where_it_was_stopped(reason, code):
    app = App("medseg-core", "A test.")

    @app.command()
    def train() -> None:
        best = SimpleNamespace(metrics={"dice": 0.75})
        tell_result(SimpleNamespace(best=best, epochs=3, reason=reason), Path("runs/a"), as_json=False)

    done = CliRunner().invoke(app, ["train"])
    assert done.exit_code == code
    assert done.stdout == f"run: runs/a\nepochs: 3\nended: {reason}\nbest_dice: 0.75\n"
    assert ("the same call with --resume --out runs/a goes on" in done.stderr) == (code == 143)


def test_a_config_that_is_shipped_is_called_by_its_name(shipped):
    result = CliRunner().invoke(shipping(shipped), ["train", "--config", "slow"])
    assert result.exit_code == 0, result.output
    assert seen["config"].lr == 0.125


def test_a_file_that_is_there_wins_over_a_shipped_config_of_its_name(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slow").write_text("lr = 0.5\n")
    CliRunner().invoke(shipping(shipped), ["train", "--config", "slow"])
    assert seen["config"].lr == 0.5


def test_a_folder_of_its_name_hides_no_shipped_config(shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slow").mkdir()
    CliRunner().invoke(shipping(shipped), ["train", "--config", "slow"])
    assert seen["config"].lr == 0.125


def test_a_config_that_nobody_knows_is_named_with_those_that_are_shipped(shipped):
    result = CliRunner().invoke(shipping(shipped), ["train", "--config", "slwo"])
    assert result.exit_code == 2
    assert result.stderr == "error: there is no config 'slwo'; did you mean 'slow'?; take a file or quick, slow\n"


def test_help_names_the_shipped_configs(shipped):
    assert "quick, slow" in CliRunner().invoke(shipping(shipped), ["train", "--help"]).output
