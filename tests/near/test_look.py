"""What a reader sees of a refinement: where things are, how much of it there is, and in which colour."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label as numbered

from medseg_core.errors import MedsegError
from medseg_near.look import scene_of, write_look

LPS = np.array([[-1.0, 0, 0, 30], [0, -1.0, 0, 30], [0, 0, 2.0, 0], [0, 0, 0, 1]])


@pytest.fixture
def masks():
    """(before, after) on 30 x 30 x 20 voxels of LPS: a bar from right to left in two pieces, then a longer whole one.

    The gap of 4 and 6 at the left end are added, a cube of 27 in front of the right end is removed; 2 x 2 thick.
    """
    before, after = np.zeros((2, 30, 30, 20), bool)
    before[5:12, 14:16, 9:11] = before[16:21, 14:16, 9:11] = True
    after[5:27, 14:16, 9:11] = True
    before[5:8, 4:7, 9:12] = True
    return before, after


def traces(scene, view):
    """meta -> colour of what a view shows."""
    (look,) = (b.args[0] for b in scene.layout.updatemenus[0].buttons if b.label == view)
    return {t.meta: c for t, seen, c in zip(scene.data, look["visible"], look["color"], strict=True) if seen}


def box_mm(scene, side):
    (trace,) = (t for t in scene.data if t.meta == side)
    return np.array([[min(axis), max(axis)] for axis in (trace.x, trace.y, trace.z)])


def pane(path, column, of=3):
    """(H, W, 3) the upper row of a column of a picture, the view from the front."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    width = pixels.shape[1] // of
    return pixels[:, column * width : (column + 1) * width]


def green(pixels):
    return (pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 15)


def red(pixels):
    return (pixels[..., 0] > pixels[..., 1] + 60) & (pixels[..., 0] > pixels[..., 2] + 60)


def test_each_view_shows_its_sides(masks):
    scene = scene_of("a", *masks, LPS, truth=masks[1])["scene"]
    views = {button.label: set(traces(scene, button.label)) for button in scene.layout.updatemenus[0].buttons}
    assert views == {
        "Changes": {"stayed", "added", "removed"},
        "Before": {"before"},
        "After": {"after"},
        "Truth": {"truth"},
        "Both": {"after", "truth"},
    }
    assert {trace.meta for trace in scene.data if trace.visible} == views["Changes"]


def test_without_a_truth_the_veil_is_the_input(masks):
    scene = scene_of("a", *masks, LPS)["scene"]
    assert set(traces(scene, "Both")) == {"after", "before"}
    assert "Truth" not in [button.label for button in scene.layout.updatemenus[0].buttons]


def test_surfaces_lie_in_the_patient(masks):
    """Voxels 5..26, 14..15 and 9..10 are -27.5..-4.5 from 30 along L and so on, in halves beyond the centres."""
    scene = scene_of("a", *masks, LPS)["scene"]
    np.testing.assert_allclose(box_mm(scene, "after"), [[3.5, 25.5], [14.5, 16.5], [17, 21]], atol=1e-4)
    np.testing.assert_allclose(box_mm(scene, "removed"), [[22.5, 25.5], [23.5, 26.5], [17, 23]], atol=1e-4)


def test_the_legend_counts_parts_and_millilitres(masks):
    names = {trace.meta: trace.name for trace in scene_of("a", *masks, LPS)["scene"].data}
    assert names["before"] == "before: 3 parts"
    assert names["after"] == "after: 1 part"
    assert names["added"] == f"added: {(4 + 6) * 4 * 2 / 1000:g} ml"
    assert names["removed"] == f"removed: {27 * 2 / 1000:g} ml"


def test_nothing_moves_from_one_view_to_the_next(masks):
    """The axes span what is seen in any of them, a millimetre as long on each."""
    room = scene_of("a", *masks, LPS)["scene"].layout.scene
    spans = []
    for axis, (low, high) in zip(
        (room.xaxis, room.yaxis, room.zaxis), ((3.5, 25.5), (14.5, 26.5), (17, 23)), strict=True
    ):
        assert axis.range[0] < low < high < axis.range[1]
        spans.append(axis.range[1] - axis.range[0])
    ratio = [room.aspectratio.x, room.aspectratio.y, room.aspectratio.z]
    assert room.aspectmode == "manual"
    np.testing.assert_allclose(np.array(ratio) / spans, ratio[0] / spans[0])


def test_the_budget_of_faces_is_kept():
    ball = np.linalg.norm(np.indices((60,) * 3) - 29.5, axis=0) < 28
    scene = scene_of("a", ball, np.roll(ball, 1, 0), np.eye(4), max_faces=3000)["scene"]
    assert sum(len(trace.i) for trace in scene.data) <= 3000


def test_what_did_not_change_has_neither_green_nor_red(masks, tmp_path):
    scene = scene_of("a", masks[0], masks[0], LPS)["scene"]
    assert set(traces(scene, "Changes")) == {"stayed"}
    pixels = pane(write_look(tmp_path, "a", masks[0], masks[0], LPS), 2)[:-60]  # without the legend
    assert not green(pixels).any()
    assert not red(pixels).any()


def test_a_picture_has_the_patients_left_on_the_right(masks, tmp_path):
    pixels = pane(write_look(tmp_path, "a", *masks, LPS), 2)[:-60]
    added, removed = np.nonzero(green(pixels))[1].mean(), np.nonzero(red(pixels))[1].mean()
    assert added > removed


def test_a_picture_does_not_depend_on_how_voxels_are_stored(masks, tmp_path):
    one = write_look(tmp_path / "one", "a", *masks, LPS)
    stored = [mask[::-1, :, ::-1].transpose(2, 0, 1) for mask in masks]
    affine = LPS @ [[0, -1, 0, 29], [0, 0, 1, 0], [-1, 0, 0, 19], [0, 0, 0, 1]]
    other = write_look(tmp_path / "other", "a", *stored, affine)
    np.testing.assert_array_equal(pane(one, 0, of=1), pane(other, 0, of=1))


def test_a_change_behind_what_stayed_shines_through(tmp_path):
    """The eye is in front: of two walls the far one is new."""
    before, after = np.zeros((2, 20, 20, 20), bool)
    before[5:15, 15, 5:15] = after[5:15, 15, 5:15] = after[5:15, 5, 5:15] = True
    pixels = pane(write_look(tmp_path, "a", before, after, np.eye(4)), 2)
    assert green(pixels[: len(pixels) // 3]).sum() > 1000


def test_voxels_that_touch_at_a_corner_look_joined(tmp_path):
    diagonal = np.zeros((9, 9, 9), bool)
    diagonal[range(1, 8), range(1, 8), range(1, 8)] = True
    pixels = pane(write_look(tmp_path, "a", diagonal, diagonal, np.eye(4)), 0)
    row = (pixels[: len(pixels) // 3] < 200).any(-1)
    sizes = np.bincount(numbered(row, np.ones((3, 3)))[0].ravel())[1:]
    assert sizes.max() > 2000


def test_the_truth_takes_a_fourth_column(masks, tmp_path):
    three = Image.open(write_look(tmp_path / "3", "a", *masks, LPS)).width
    four = Image.open(write_look(tmp_path / "4", "a", *masks, LPS, truth=masks[1])).width
    assert four / three == pytest.approx(4 / 3, abs=0.06)


def test_empty_masks_are_seen_as_such(masks, tmp_path):
    nothing = np.zeros_like(masks[0])
    for before, after in ((nothing, nothing), (masks[0], nothing), (nothing, masks[0])):
        assert write_look(tmp_path, "a", before, after, LPS).is_file()
        names = {trace.meta for trace in scene_of("a", before, after, LPS)["scene"].data}
        assert ("before" in names, "after" in names) == (before.any(), after.any())


def test_masks_of_two_grids_are_refused(masks, tmp_path):
    with pytest.raises(MedsegError, match=r"after is bool \(29, 30, 20\) beside before"):
        write_look(tmp_path, "a", masks[0], masks[1][1:], LPS)
    with pytest.raises(MedsegError, match="truth is uint8"):
        scene_of("a", *masks, LPS, truth=masks[0].astype(np.uint8))
    assert not list(tmp_path.iterdir())
