"""What stands in masks, and which class it is."""

from collections import Counter

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_sem_al.colours import classes_of, counted, guessed, read_classes

BLUE, RED, GREY = (0, 0, 255), (255, 0, 0), (90, 90, 90)


def test_colours_become_ids_and_any_grey_its_own():
    classes = classes_of({"matrix": "grey", "one": "#0000ff", "two": "#FF0000"}, "test")
    ids, unknown = classes.decode(np.array([[BLUE, GREY], [RED, (3, 3, 3)]], np.uint8))
    assert (ids.tolist(), unknown) == ([[1, 0], [2, 0]], Counter())


def test_alpha_is_left_out():
    pixels = np.array([[(*BLUE, 255), (*GREY, 0)]], np.uint8)
    ids, _ = classes_of({"matrix": "grey", "one": "#0000ff"}, "test").decode(pixels)
    assert ids.tolist() == [[1, 0]]


def test_a_value_of_its_own_comes_before_any_grey():
    ids, _ = classes_of({"rest": "grey", "pore": [0, 7]}, "test").decode(np.array([[0, 7, 8]], np.uint8))
    assert ids.tolist() == [[1, 1, 0]]


def test_a_grey_colour_is_its_value():
    ids, unknown = classes_of({"a": 127, "b": "#ffffff"}, "test").decode(np.array([[127, 255]], np.uint8))
    assert (ids.tolist(), unknown) == ([[0, 1]], Counter())


def test_other_takes_what_has_no_class():
    ids, unknown = classes_of({"a": 0, "rest": "other"}, "test").decode(np.array([[0, 9]], np.uint16))
    assert (ids.tolist(), unknown) == ([[0, 1]], Counter())


def test_unknown_values_are_counted():
    _, unknown = classes_of({"a": 0, "b": "#0000ff"}, "test").decode(np.array([[GREY, BLUE, GREY]], np.uint8))
    assert unknown == Counter({90: 2})


def test_the_nearest_class_is_by_distance_of_colours():
    classes = classes_of({"a": "#0000ff", "b": "#ff0000"}, "test")
    assert classes.nearest("#0000fa") == "a (#0000ff)"
    assert classes.nearest("#ee1111") == "b (#ff0000)"


def test_classes_come_back_from_what_they_are_written_as():
    table = {"matrix": ["grey"], "one": ["#0000ff", 7], "rest": ["other"]}
    assert classes_of(table, "test").as_json() == table


def test_the_colours_of_the_original_are_known_by_name():
    classes = guessed(Counter({"#00ffff": 5, "#ff7e7e": 9}))
    assert (classes.names, classes.codes["#ff7e7e"]) == (("carbon", "SE", "AM"), 2)


def test_few_values_are_classes_in_their_order():
    classes = guessed(counted(np.array([[255, 0], [127, 0]], np.uint8)))
    assert classes.codes == {0: 0, 127: 1, 255: 2}


def test_many_values_are_refused_with_a_table_to_begin_from():
    counts = Counter({**dict.fromkeys(range(50), 10), "#0000ff": 500})
    with pytest.raises(
        MedsegError, match=r'51 values, 50 of them grey, and #0000ff 50.0%.*"matrix": "grey", "class_1"'
    ):
        guessed(counts)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2), np.float32), np.full((2, 2), -1, np.int32)])
def test_a_mask_of_other_numbers_is_refused(pixels):
    with pytest.raises(MedsegError, match="a mask holds whole numbers from 0 on"):
        counted(pixels)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('a = "blue"', "a has the code 'blue'"),
        ("a = -1", "a has the code -1"),
        ("a = 0\nb = 0", "0 is a and b; give it to one"),
        ("", "must be a table of classes"),
        ("a = ", "cannot read"),
    ],
)
def test_tables_that_say_nothing_clear_are_refused(tmp_path, text, told):
    (tmp_path / "classes.toml").write_text(text)
    with pytest.raises(MedsegError, match=told):
        read_classes(tmp_path / "classes.toml")


def test_what_nobody_labelled_is_no_class_and_no_unknown_value():
    table = {"a": [0], "b": ["#0000ff"], "unlabelled": ["#ffff00"]}
    classes = classes_of(table, "test")
    ids, unknown = classes.decode(np.array([[BLUE, (255, 255, 0)], [BLUE, (0, 0, 0)]], np.uint8))
    assert (ids.tolist(), unknown, classes.names) == ([[1, 255], [1, 0]], Counter(), ("a", "b"))
    assert classes.as_json() == table
