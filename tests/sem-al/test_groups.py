"""What a split keeps whole."""

import pytest

from medseg_core.errors import MedsegError
from medseg_sem_al.groups import groups_of, merged

NAMES = ["a_001", "a_002", "a_005", "b_006", "c"]


@pytest.mark.parametrize(
    ("how", "groups"),
    [
        ("image", NAMES),
        ("sequence", ["a", "a", "a", "b", "c"]),
        ("block", ["a_1", "a_1", "a_5", "b_6", "c_0"]),
        (r"[ab]", ["a", "a", "a", "b", "c"]),
    ],
)
def test_groups_by_each_rule(how, groups):
    assert groups_of(NAMES, how) == groups


def test_blocks_do_not_depend_on_the_order_of_names():
    assert groups_of(NAMES[::-1], "block") == groups_of(NAMES, "block")[::-1]


def test_a_name_of_digits_is_a_sequence_by_itself():
    assert groups_of(["1", "2"], "sequence") == ["1", "2"]


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(MedsegError, match="is no regular expression"):
        groups_of(NAMES, "(")


def test_pairs_make_groups_one_also_in_chains():
    assert merged(["a", "b", "c", "d"], [(2, 1), (1, 0)]) == ["a", "a", "a", "d"]
