import json

import matplotlib.image
import pytest
from matplotlib.colors import to_hex
from tests.run_folders import make_run
from typer.testing import CliRunner

from medseg_core.cli import app
from medseg_core.compare import compare_runs, curves_of, differences
from medseg_core.run import read_history


def call(*arguments):
    return CliRunner().invoke(app, ["runs", *map(str, arguments)])


def test_settings_that_differ_are_told_and_no_others():
    tables = [{"lr": 0.1, "epochs": 3, "widths": [1, 2]}, {"lr": 0.2, "epochs": 3, "widths": [1, 2], "new": None}]
    assert differences(tables) == {"lr": [0.1, 0.2], "new": ["-", None]}


def test_two_runs_are_compared_in_a_table_and_one_picture(inside):
    make_run(inside / "runs" / "a", widths=[16, 32])
    make_run(inside / "runs" / "b", widths=[8, 16], done=2)
    (inside / "runs" / "b" / "run.json").write_text(json.dumps({"command": "x", "versions": {"torch": "2.6"}}))
    lines = call("runs/a", "runs/b").stdout.splitlines()
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    assert table == [
        ["setting", "a", "b"],
        ["widths", "16,32", "8,16"],
        [],
        ["circumstance", "a", "b"],
        ["torch", "-", "2.6"],
        [],
        ["picture:", "compare.png"],
    ]
    height, width, _ = matplotlib.image.imread("compare.png").shape
    assert width > height > 400


def test_runs_of_one_name_are_told_apart_by_their_paths(inside):
    for folder in "xy":
        make_run(inside / folder / "run", epochs=3 + (folder == "y"))
    result = call("x/run", "y/run", "--json")
    assert json.loads(result.stdout)["settings"] == {"epochs": [3, 4]}
    assert "setting  x/run  y/run" in call("x/run", "y/run", "--overwrite").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "b", "--out", "there.png"), "there.png is there already; add --overwrite"),
        (("a", "b", "--out", "new.doc"), "name it .png or .pdf or .svg"),
        (("a", "nowhere"), "nowhere holds no run"),
        (("a", "bad"), "cannot read bad/config.json"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line_and_leaves_nothing(inside, arguments, said):
    for name in ("a", "b", "bad"):
        make_run(inside / name)
    (inside / "bad" / "config.json").write_text("{")
    (inside / "there.png").write_text("mine")
    before = sorted(inside.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(inside.rglob("*")) == before
    assert (inside / "there.png").read_text() == "mine"


def lines_of(axes):
    """(colour, style) -> the values of a line."""
    return {
        (to_hex(line.get_color()), line.get_linestyle()): list(line.get_ydata())
        for line in axes.lines
        if len(line.get_xdata()) > 1
    }


def test_each_run_has_its_colour_and_training_is_solid_where_validation_is_dashed(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", scores=(0.25, 0.5, 0.875))
    histories = {name: read_history(tmp_path / name) for name in "ab"}
    figure = curves_of(histories)
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert texts == ["training", "validation", "best epoch", "a", "b"]
    a, b = (to_hex(line.get_color()) for line in figure.legends[1].get_lines())
    assert a != b
    loss, score = figure.axes
    assert lines_of(loss)[a, "-"] == lines_of(loss)[b, "-"] == [1, 1 / 2, 1 / 3]
    assert lines_of(loss)[a, "--"] == [2, 1, 2 / 3]
    assert lines_of(score)[b, "--"] == [0.25, 0.5, 0.875]
    assert lines_of(score)[b, "-"] == pytest.approx([0.15, 0.4, 0.775])
    assert score.get_title(loc="left") == "score: dice"
    marks = {to_hex(line.get_color()): line for line in score.lines if line.get_marker() == "o"}
    assert [list(marks[colour].get_xdata()) for colour in (a, b)] == [[2], [3]]


def test_twelve_runs_have_twelve_colours():
    histories = {str(n): {"epoch": [1, 2], "train_loss": [2.0, 1.0]} for n in range(12)}
    colours = {to_hex(line.get_color()) for line in curves_of(histories).axes[0].lines}
    assert len(colours) == 12


def test_a_run_without_an_epoch_is_compared_too(tmp_path):
    make_run(tmp_path / "a", done=0)
    make_run(tmp_path / "b", done=1)
    found = compare_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "c.svg")
    assert [run["epochs"] for run in found["runs"]] == [0, 1]
    assert (tmp_path / "c.svg").is_file()
