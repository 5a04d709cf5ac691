"""Rows kept as columns read like the rows they were."""

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from medseg_core.config import strict
from medseg_core.errors import MedsegError
from medseg_core.intervals import holm
from medseg_core.table import Rows, write_csv

HEAD = {"case": "a", "label": 1, "name": "liver", "status": "both"}


def test_rows_come_back_as_they_went_in():
    rows = [HEAD | {"dice": 0.5}, HEAD | {"case": "b", "status": "missed", "dice": 0.0}]
    assert list(Rows(rows)) == rows
    assert (Rows(rows)[-1], Rows(rows)[0:1]) == (rows[1], rows[:1])


def test_a_whole_case_has_measures_of_its_own():
    burden = {"case": "a", "label": "", "name": "", "status": "", "burden": 3.0}
    rows = Rows([HEAD | {"dice": 0.5}, burden])
    assert rows[1] == burden
    assert (rows.measures(of_structures=True), rows.columns) == (("dice",), ("dice", "burden"))


@pytest.mark.parametrize("undefined", [None, "", math.nan])
def test_what_is_undefined_is_nan(undefined):
    rows = Rows([HEAD | {"dice": 0.5}, HEAD | {"dice": undefined}, HEAD])
    assert_array_equal(rows.column("dice"), [0.5, np.nan, np.nan])


def test_a_measure_that_comes_late_is_nan_before():
    rows = Rows([HEAD | {"dice": 0.5}, HEAD | {"dice": 0.4, "hd_mm": 2.0}])
    assert_array_equal(rows.column("hd_mm"), [np.nan, 2.0])


def test_a_measure_that_nobody_has_is_nan_everywhere():
    assert_array_equal(Rows([HEAD | {"dice": 0.5}]).column("iou"), [np.nan])


@pytest.mark.parametrize("row", [{"dice": 1.0}, HEAD | {"dice": "good"}])
def test_what_is_no_row_is_refused_and_leaves_nothing_behind(row):
    rows = Rows([HEAD | {"dice": 0.5}])
    with pytest.raises(MedsegError, match=r"without `case`|must be numbers"):
        rows.append(row)
    assert list(rows) == [HEAD | {"dice": 0.5}]
    assert rows.column("dice").shape == (1,)


def test_undefined_numbers_are_null_for_json_and_empty_for_csv(tmp_path):
    assert strict({"a": [math.nan, math.inf, 1.0]}) == {"a": [None, None, 1.0]}
    write_csv(tmp_path / "t.csv", [{"a": math.nan, "b": 2.0}], ("a", "b"))
    assert (tmp_path / "t.csv").read_text() == "a,b\n,2.0\n"


def test_holms_correction_by_hand():
    # sorted: 0.01 x 3, 0.02 x 2, 0.04 x 1, and never below the one before
    assert_array_equal(holm(np.array([0.04, 0.01, np.nan, 0.02])), [0.04, 0.03, np.nan, 0.04])
