"""Masks that come back: as other programs save them, and what is wrong with some."""

import numpy as np
import pytest
from PIL import Image

from medseg_core.errors import MedsegError
from medseg_sem_al.colours import Classes
from medseg_sem_al.outlines import write_outlines
from medseg_sem_al.proposals import write_indexed
from medseg_sem_al.returned import Inbox, back_up, check, merged, read_back

COLOURS = [(0, 0, 0), (0, 255, 255), (255, 126, 126)]
CLASSES = Classes(("pore", "SE", "AM"))
IDS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
RGB = np.array([*COLOURS, *[(255, 255, 255)] * 253], np.uint8)[IDS]


def back(file, banner=0):
    return read_back(file, (2, 3), COLOURS, CLASSES, [(0, 0, 2, 3)], banner=banner)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_proposal_comes_back_as_it_was(tmp_path, suffix):
    write_indexed(IDS, COLOURS, tmp_path / f"a{suffix}")
    assert np.array_equal(back(tmp_path / f"a{suffix}"), IDS)


def test_outlines_come_back_as_ids(tmp_path):
    write_outlines(IDS, CLASSES.names, tmp_path / "a.zip")
    assert np.array_equal(back(tmp_path / "a.zip"), IDS)


def test_an_outline_says_nothing_about_what_was_not_asked_for(tmp_path):
    write_outlines(np.ones((3, 3), np.uint8), CLASSES.names, tmp_path / "a.zip")
    ring = [(0, 0, 1, 3), (1, 0, 3, 1), (1, 2, 3, 3), (2, 1, 3, 2)]
    ids = read_back(tmp_path / "a.zip", (3, 3), COLOURS, CLASSES, ring)
    assert ids.tolist() == [[1, 1, 1], [1, 255, 1], [1, 1, 1]]


def test_a_palette_that_a_program_sorted_anew_says_the_same(tmp_path):
    Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert not np.array_equal(np.array(picture), IDS)
    assert np.array_equal(back(tmp_path / "a.png"), IDS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_classes_and_white_is_none(tmp_path, mode):
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(back(tmp_path / "a.png"), IDS)


def test_greys_are_ids(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.png")
    assert np.array_equal(back(tmp_path / "a.png"), IDS)


def test_a_colour_between_two_is_refused_with_the_nearest(tmp_path):
    rgb = RGB.copy()
    rgb[0, 1] = (10, 250, 250)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    with pytest.raises(
        MedsegError, match=r"1 colours that are no class, #0afafa in 1 pixels \(SE is #00ffff\); draw with a"
    ):
        back(tmp_path / "a.png")


def test_a_grey_that_is_no_id_is_refused(tmp_path):
    Image.fromarray(IDS + np.uint8(4)).save(tmp_path / "a.png")
    with pytest.raises(MedsegError, match=r"4 in 2 pixels, 5 in 2 pixels.* \(0 to 2, 255 for none\)"):
        back(tmp_path / "a.png")


@pytest.mark.parametrize("pixels", [np.full((2, 3), 0.7, np.float32), np.array([[True, False, True]] * 2)])
def test_what_has_no_whole_classes_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(MedsegError, match=r"a\.tif has no whole classes .*; save it as 8 bits or in colours"):
        back(tmp_path / "a.tif")


def test_what_is_transparent_has_no_label(tmp_path):
    alpha = np.array([[255, 0, 255], [255, 255, 255]], np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "a.png")
    assert back(tmp_path / "a.png").tolist() == [[0, 255, 2], [255, 1, 0]]
    Image.fromarray(np.dstack([RGB, alpha // 2])).save(tmp_path / "a.png")
    with pytest.raises(MedsegError, match="is transparent in part"):
        back(tmp_path / "a.png")


def test_a_mask_may_be_drawn_with_the_banner(tmp_path):
    Image.fromarray(np.vstack([IDS, IDS[:1]])).save(tmp_path / "a.png")
    assert np.array_equal(back(tmp_path / "a.png", banner=1), IDS)


def test_backups_never_write_over_each_other(tmp_path):
    file = tmp_path / "img[1]_5.png"
    for text in ("one", "two", "three"):
        file.write_text(text)
        back_up(file, tmp_path)
    (tmp_path / "backups" / "img[1]_5-000.png").unlink()
    file.write_text("four")
    back_up(file, tmp_path)
    assert [kept.read_text() for kept in sorted((tmp_path / "backups").iterdir())] == ["four", "two", "three"]


def test_another_size_is_refused(tmp_path):
    Image.fromarray(IDS[:, :2]).save(tmp_path / "a.png")
    with pytest.raises(MedsegError, match=r"a\.png is 2x2 and its picture 3x2"):
        back(tmp_path / "a.png")


WHOLE = [(0, 0, 2, 3)]


def checked(ids, proposal=None, boxes=WHOLE, *, unedited=False):
    proposal = np.ones_like(ids) if proposal is None else proposal
    return check(ids, proposal, boxes, CLASSES.names, unedited=unedited)


def test_a_proposal_that_was_not_changed_is_refused_unless_that_is_meant():
    with pytest.raises(MedsegError, match="it is the proposal, unchanged; correct it, or add --accept-unedited"):
        checked(IDS, IDS)
    assert checked(IDS, IDS, unedited=True) == ["16.7% of what was asked for has no label yet"]


def test_a_mask_without_a_label_where_it_was_asked_for_is_refused():
    with pytest.raises(MedsegError, match="it labels nothing of what was asked for"):
        checked(IDS, boxes=[(1, 0, 2, 1)])


def test_a_class_that_vanished_is_told():
    proposal = np.full((2, 3), 2, np.uint8)
    assert checked(np.ones((2, 3), np.uint8), proposal) == ["the proposal had AM, and it has none"]


def test_new_labels_lie_over_old_ones_and_take_none_away():
    before = np.array([[2, 2, 2], [2, 2, 2]], np.uint8)
    assert merged(before, IDS, []).tolist() == [[0, 1, 2], [2, 1, 0]]
    assert merged(before, IDS, WHOLE).tolist() == IDS.tolist()  # where it was asked for, what was erased is
    assert merged(None, IDS, []) is IDS


@pytest.mark.parametrize("suffix", [".png", ".zip"])
def test_a_file_counts_once_it_stopped_growing(tmp_path, suffix):
    inbox, file = Inbox(tmp_path), tmp_path / f"a{suffix}"
    assert inbox.settled() == {}
    for part in (b"1", b"12"):
        file.write_bytes(part)
        assert inbox.settled() == {}
    assert inbox.settled() == {"a": [file]}
    assert inbox.settled() == {}  # told once


def test_a_file_that_is_saved_again_is_told_again(tmp_path):
    inbox, file = Inbox(tmp_path), tmp_path / "a.png"
    file.write_bytes(b"1")
    inbox.settled(), inbox.settled()
    file.write_bytes(b"12")
    assert (inbox.settled(), inbox.settled()) == ({}, {"a": [file]})


def test_a_file_that_was_away_is_told_again(tmp_path):
    inbox, file = Inbox(tmp_path), tmp_path / "a.png"
    file.write_bytes(b"1")
    inbox.settled(), inbox.settled()
    file.rename(tmp_path / "elsewhere")
    inbox.settled()
    (tmp_path / "elsewhere").rename(file)
    assert (inbox.settled(), inbox.settled()) == ({}, {"a": [file]})


def test_what_programs_leave_lying_about_is_not_looked_at(tmp_path):
    inbox = Inbox(tmp_path)
    for name in (".a.png", "~a.png", "a.png.part", "notes.txt", "empty.png"):
        (tmp_path / name).write_bytes(b"" if name == "empty.png" else b"1")
    (tmp_path / "a.zip").mkdir()
    inbox.settled()
    assert inbox.settled() == {}
