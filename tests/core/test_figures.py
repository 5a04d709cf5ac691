"""Pictures: the right slice, the right way round, readable, and nothing left behind."""

import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from medseg_core import figures
from medseg_core.errors import MedsegError
from medseg_core.figures import colour_of, curves, detection_rates, overlay, ranking, save, sheet, title_of

FORMULA = "$\\frac{broken$"


def painted(figure: Figure) -> dict[str, np.ndarray]:
    """Pane -> (H, W, 3) pixels."""
    return {axes.get_title(): np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes}


def summary_of(names: list[str], **more: object) -> list[dict]:
    rows = [{"kind": "structure", "measure": "dice", "name": name, "mean": 1 / (1 + n)} for n, name in enumerate(names)]
    return [{**row, "low": 0.0, "high": 1.0, "n": 3, "n_missed": 1, "n_invented": 0, **more} for row in rows]


def test_the_slice_with_the_most_labelled_voxels_is_shown():
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4, 2:4, 1] = 1
    label[:, :, 3] = 9  # not a named structure
    panes = painted(overlay(label, label, {1: "liver"}))
    assert list(panes) == ["label", "mask"]
    assert (panes["label"].sum(axis=2) > 0).sum() == 4


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_the_patients_right_is_left_and_the_front_on_top_in_every_orientation(codes: str):
    label = np.zeros((7, 6, 5), np.uint8)  # R, A, S
    label[6, :, 2] = 1
    label[:, 5, 2] = 2
    axes = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), axes)
    turned = nib.orientations.apply_orientation(label, turn)
    affine = nib.orientations.inv_ornt_aff(turn, label.shape)
    label_pane = painted(overlay(turned, turned, {1: "right", 2: "front"}, affine=affine))["label"]
    assert label_pane.shape[:2] == (6, 7)
    np.testing.assert_allclose(label_pane[0, :] * 255, [colour_of(2)] * 7)
    np.testing.assert_allclose(label_pane[1:, 0] * 255, [colour_of(1)] * 5)


def test_a_single_plane_is_shown_as_it_lies():
    label = np.zeros((6, 1, 5), np.uint8)
    label[1, 0, 1] = 1
    assert painted(overlay(label, label, {1: "liver"}, affine=np.eye(4)))["label"].shape[:2] == (5, 6)


def test_only_named_ids_are_painted_whatever_the_type_of_the_array():
    label = np.array([[-1, 0, 7, 300]], np.int16)
    pane = painted(overlay(label, label.astype(np.uint8) % 8, {7: "liver", 300: "spleen"}))
    assert (pane["label"].sum(axis=2) > 0).tolist() == [[False, False, True, True]]
    assert (pane["mask"].sum(axis=2) > 0).tolist() == [[True, False, True, False]]  # 255 % 8 = 7, 44 % 8 = 4


def test_rows_of_a_picture_run_down():
    label = np.array([[1, 1, 0], [0, 0, 0]], np.uint8)
    pane = painted(overlay(label, label, {1: "pore"}))["label"]
    assert (pane.sum(axis=2) > 0).tolist() == [[True, True, False], [False, False, False]]


def test_a_window_maps_its_ends_to_black_and_white():
    image = np.array([[-500, -160, 40, 240, 900]], np.float32)
    label = np.zeros((1, 5), np.uint8)
    pane = painted(overlay(label, label, {1: "liver"}, image=image, window=figures.CT_WINDOW_HU))["image"]
    np.testing.assert_allclose(pane[0, :, 0], [0, 0, 0.5, 1, 1])


def test_pixels_keep_their_shape_in_millimetres():
    label = np.ones((10, 10, 2), np.uint8)
    figure = overlay(label, label, {1: "liver"}, spacing=(1.0, 2.0, 1.5))
    assert figure.axes[0].get_aspect() == pytest.approx(2)


def test_a_sheet_shows_every_sample_with_its_named_labels():
    labels = np.zeros((5, 8, 8), np.int64)
    labels[:, 2:4, 2:4], labels[:, 6, 6] = 1, -1  # -1: to be ignored
    drawn = sheet(np.zeros((5, 8, 8)), labels, {1: "liver"})
    panes = [axes.get_images()[0].get_array() for axes in drawn.axes if axes.get_images()]
    assert [int((pane.sum(axis=2) > 0).sum()) for pane in panes] == [4] * 5
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["liver"]


def test_detection_counts_the_references_structures_only():
    rows = [{"status": "both", "dice": d} for d in (0.95, 0.85, 0.5)]
    rows += [{"status": "missed", "dice": 0.0}, {"status": "invented", "dice": 0.0}]
    assert detection_rates(rows) == {0.5: 0.5, 0.6: 0.5, 0.7: 0.5, 0.8: 0.5, 0.9: 0.25}


def test_a_ranking_of_a_hundred_and_seventeen_names_can_be_read():
    figure = ranking(summary_of([f"a_long_structure_name_{n}" for n in range(117)]))
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    boxes = sorted((text.get_window_extent() for text in axes.get_yticklabels()), key=lambda box: box.y0)
    assert len(boxes) == 117
    assert all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    assert axes.get_yticklabels()[-1].get_text() == "a_long_structure_name_0"


def test_a_name_with_dollars_is_printed_and_not_set_as_a_formula(tmp_path: Path):
    label = np.ones((4, 4), np.uint8)
    save(overlay(label, label, {1: FORMULA}, title=FORMULA), tmp_path / "overlay.png")
    save(ranking(summary_of([FORMULA, "b"]), groups={FORMULA: FORMULA}), tmp_path / "ranking.png")
    save(figures.distributions([{FORMULA: 0.5}], [FORMULA]), tmp_path / "distributions.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_curves_skip_epochs_without_validation():
    history = {"epoch": [1, 2, 3], "lr": [0.1, 0.05, 0.01], "train_loss": [3, 2, 1], "val_loss": [None, 2.5, None]}
    history |= {"val_dice": [None, 0.5, None], "val_hd95_mm": [None, 40.0, None], "seconds": [9, 9, 9]}
    panels = {axes.get_title(loc="left"): axes for axes in curves(history).axes if axes.axison}
    assert list(panels) == ["loss", "score", "hd95_mm", "learning rate"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels["loss"].get_lines()}
    assert lines == {"train loss": [[1, 3], [2, 2], [3, 1]], "val loss": [[2, 2.5]]}


def test_curves_of_a_run_that_has_no_epoch_yet_can_be_drawn(tmp_path: Path):
    assert save(curves({}), tmp_path / "curves.png").is_file()


@pytest.mark.parametrize(
    ("column", "title"),
    [
        ("dice", "Dice"),
        ("hd95_mm", "HD95 (mm)"),
        ("nsd_3mm", "NSD (3\u00a0mm)"),
        ("volume_ref_ml", "Ref. volume (ml)"),
        ("area_pred_nm2", "Pred. area (nm²)"),
        ("tmtv_ml", "tmtv (ml)"),
    ],
)
def test_columns_are_named_as_people_read_them(column: str, title: str):
    assert title_of(column) == title


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def half(figure: Figure, path: Path, **more: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(MedsegError, match=r"a\.png: no space"):
        save(Figure(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_picture_can_be_opened(tmp_path: Path):
    with Image.open(save(figures.detection([{"status": "both", "dice": 0.7}]), tmp_path / "a.png")) as picture:
        assert picture.width > 600


def test_drawing_keeps_no_global_state():
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
