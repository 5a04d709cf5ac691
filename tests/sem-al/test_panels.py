"""Pictures of masks: colours, what is mixed with what, and where a panel's parts lie."""

import numpy as np
import pytest

from medseg_sem_al.colours import UNSEEN, Classes, classes_of
from medseg_sem_al.panels import GAP, TALLEST, colours_of, overlaid, painted, panel

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_class_has_the_colour_that_its_masks_had():
    classes = classes_of({"pore": "#ff0000", "AM": ["#ff7e7e", "#00ff00"]}, "by hand")
    assert colours_of(classes) == [(255, 0, 0), (255, 126, 126)]


def test_a_class_of_greys_has_the_colour_of_its_id():
    classes = classes_of({"matrix": "grey", "one": [7, 9], "two": "#0000ff", "rest": "other"}, "by hand")
    # black is 0; then the colours of Okabe and Ito (2008): orange is the first, bluish green the third
    assert colours_of(classes) == [(0, 0, 0), (230, 159, 0), (0, 0, 255), (0, 158, 115)]


def test_no_masks_have_no_colours():
    assert colours_of(Classes(())) == []


def test_ids_are_painted_and_what_nobody_looked_at_is_white():
    ids = np.array([[0, 1], [1, UNSEEN]], np.uint8)
    assert painted(ids, [RED, BLUE]).tolist() == [[list(RED), list(BLUE)], [list(BLUE), [255, 255, 255]]]


def test_an_overlay_has_a_third_of_the_colour_and_the_borders_whole():
    ids = np.zeros((4, 8), np.uint8)
    ids[:, 5:] = 1
    shown = overlaid(np.full((4, 8), 0.4, np.float32), ids, [RED, BLUE])  # 102 of 255
    assert shown[1, 1].tolist() == [round(0.65 * 102 + 0.35 * 255), round(0.65 * 102), round(0.65 * 102)]
    assert shown[1, 4].tolist() == list(RED)  # the last pixel before the other class
    assert shown[1, 6].tolist() == [66, 66, round(0.65 * 102 + 0.35 * 255)]


def test_a_border_between_rows_is_drawn_too():
    ids = np.array([[0, 0], [0, 0], [1, 1]], np.uint8)
    shown = overlaid(np.zeros((3, 2), np.float32), ids, [RED, BLUE])
    assert [row[0].tolist() == list(RED) for row in shown] == [False, True, False]


def test_an_overlay_leaves_as_it_is_what_nobody_looked_at():
    grey = np.array([[0.2, 0.4], [0.6, 0.8]], np.float32)
    ids = np.array([[0, 0], [UNSEEN, UNSEEN]], np.uint8)
    assert overlaid(grey, ids, [RED])[1].tolist() == [[153] * 3, [204] * 3]


@pytest.fixture
def parts():
    """The four parts of a panel of 6 x 10 pixels, one of which is wrong and one was never looked at."""
    grey = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    label = np.zeros((6, 10), np.uint8)
    label[:, 5:] = 1
    mask = label.copy()
    mask[2, 3] = 1
    label[4, 4], mask[4, 4] = UNSEEN, 1
    shown = panel(grey, label, mask, [RED, BLUE])
    assert shown.shape == (6, 4 * 10 + 3 * GAP, 3)
    return grey, label, mask, [shown[:, k * (10 + GAP) : k * (10 + GAP) + 10] for k in range(4)]


def test_a_panel_is_image_then_truth_then_prediction(parts):
    grey, label, mask, shown = parts
    np.testing.assert_array_equal(shown[0][..., 1], np.rint(255 * grey))
    np.testing.assert_array_equal(shown[1], painted(label, [RED, BLUE]))
    np.testing.assert_array_equal(shown[2], painted(mask, [RED, BLUE]))


def test_a_panel_ends_with_what_is_wrong_alone(parts):
    orange = (parts[3][3] == (255, 80, 0)).all(2)
    assert np.argwhere(orange).tolist() == [[2, 3]]


def test_the_gaps_of_a_panel_are_white():
    shown = panel(np.zeros((4, 4)), np.zeros((4, 4), int), np.zeros((4, 4), int), [RED])
    assert (shown[:, 4 : 4 + GAP] == 255).all()
    assert not (shown[:, -4:] == 255).any()


def test_a_tall_panel_is_thinned_out_in_both_directions():
    tall = np.zeros((2 * TALLEST + 1, 30), np.uint8)
    tall[:, 15:] = 1
    shown = panel(tall.astype(np.float32), tall, tall, [RED, BLUE])
    assert shown.shape == (342, 4 * 10 + 3 * GAP, 3)  # every third row of 1025, and every third column of 30
    assert shown[0, 10 + GAP :][:10].tolist() == [list(RED)] * 5 + [list(BLUE)] * 5
