import json
from dataclasses import dataclass
from typing import Literal

import pytest

from medseg_core.config import as_dict, as_toml, resolve, setting
from medseg_core.errors import MedsegError


@dataclass(frozen=True, kw_only=True)
class Hostile:
    lr: float = setting(0.1, "rate")
    size: int = setting(1, "edge")
    name: str = setting("", "name")
    window_hu: tuple[float, float] = setting((0.0, 1.0), "kept")


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = setting(10, "Passes.", low=1, high=1000)
    lr: float = setting(1e-3, "Rate.", low=0)
    loss: Literal["dice", "none"] = setting("dice", "Loss.")
    widths: tuple[int, ...] = setting((32, 64), "Widths.", low=1)
    window_hu: tuple[float, float] | None = setting(None, "Window.")
    compile: bool = setting(False, "Compile.")
    name: str = setting("a", "Name.")


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("epochs = 20\nlr = 0.5\n")
    config = resolve(Config, {"lr": "0.001"}, file=file)
    assert (config.epochs, config.lr, config.loss) == (20, 0.001, "dice")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "7", 7),
        ("lr", "1e-4", 1e-4),
        ("widths", "8,16,32", (8, 16, 32)),
        ("window_hu", "-1000,1000", (-1000.0, 1000.0)),
        ("window_hu", "none", None),
        ("loss", "none", "none"),
        ("compile", "true", True),
        ("compile", "no", False),
        ("name", "none", "none"),
        ("widths", "", ()),
    ],
)
def test_text_becomes_the_field_s_type(name, text, value):
    assert getattr(resolve(Config, {name: text}), name) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'?"),
        ({"epochs": "0"}, "epochs must be between 1 and 1000, got 0"),
        ({"epochs": 2.5}, "epochs must be INT, got 2.5"),
        ({"epochs": True}, "epochs must be INT, got True"),
        ({"lr": "nan"}, "lr must be at least 0, got nan"),
        ({"lr": "fast"}, "lr must be FLOAT, got 'fast'"),
        ({"loss": "dise"}, "loss must be dice|none, got 'dise'; did you mean 'dice'?"),
        ({"widths": "8,-1"}, "widths must be at least 1, got -1"),
        ({"window_hu": "1"}, "window_hu must be FLOAT,FLOAT|none, got '1'"),
        ({"epochs": None}, "epochs must be INT, got none"),
        ({"compile": "maybe"}, "compile must be true|false, got 'maybe'"),
        ({"name": 3}, "name must be TEXT, got 3"),
    ],
)
def test_a_bad_value_is_refused_with_the_value_and_the_fix(given, message):
    with pytest.raises(MedsegError) as error:
        resolve(Config, given)
    assert str(error.value) == message


@pytest.mark.parametrize("content", ["epochs = ", "[1, 2]", '{"epochs": 3}'])
def test_a_file_that_is_no_table_is_one_clear_error(tmp_path, content):
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(MedsegError, match=r"run\.toml"):
        resolve(Config, file=file)


def test_a_resolved_config_can_be_fed_back_as_json_and_as_toml(tmp_path):
    config = resolve(Config, {"widths": (1, 2, 3), "window_hu": (-100, 300), "lr": "inf"})
    (tmp_path / "a.json").write_text(json.dumps(as_dict(config)))
    (tmp_path / "a.toml").write_text(as_toml(config))
    assert resolve(Config, file=tmp_path / "a.json") == config
    assert resolve(Config, file=tmp_path / "a.toml") == config


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.json", '{"lr": 1, "lr": 2}', "'lr' stands there twice"),
        ("c.json", '{"lr": 1%s}' % ("0" * 400), "lr must be FLOAT"),
        ("c.json", '{"lr": 1e999, "size": 1e999}', "size must be INT"),
        ("c.json", '{"window_hu": {"1": 0, "2": 0}}', "window_hu must be FLOAT,FLOAT"),
        ("c.json", '{"name": "\\ud800"}', "name must be TEXT"),
        ("c.json", '{"name": "a\\nb"}', "name must be TEXT"),
        ("c.toml", "a." * 30_000 + "b = 1", "more than 100 parts"),
        ("c.toml", "a . " * 30_000 + "b = 1", "more than 100 parts"),
        ("c.toml", "lr = " + "[" * 30_000, "not valid toml"),
        ("c.toml", "window_hu = [nan, 1.0]", "window_hu must be a number, got nan"),
    ],
)
def test_a_hostile_file_is_one_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(MedsegError, match=words):
        resolve(Hostile, file=tmp_path / name)


def test_a_file_with_a_byte_order_mark_and_rulers_of_dots_is_read(tmp_path):
    (tmp_path / "c.toml").write_text(f"# {'.' * 500}\nlr = 0.5 # {'. ' * 300}\n", encoding="utf-8-sig")
    assert resolve(Hostile, file=tmp_path / "c.toml").lr == 0.5
