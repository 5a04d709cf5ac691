"""Figures and films: what is drawn where."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from medseg_cardiac.animation import MOST_BYTES, animate
from medseg_cardiac.orientation import Directions, axes_of
from medseg_cardiac.pictures import LINES, Tracked, box_about, bullseye, contour_sheet, strain_curves
from medseg_core.errors import MedsegError
from medseg_core.figures import save

SEPTUM_DOWN = Directions(septum=np.array([1.0, 0.0]), anterior=np.array([0.0, -1.0]), said="")


def places(figure: Figure) -> dict[str, tuple[float, float]]:
    """Text -> where it is anchored, (right, up)."""
    return {text.get_text(): text.xy for text in figure.axes[0].texts if hasattr(text, "xy")}


def circle(radius: float, *, centre: tuple[float, float] = (30.0, 50.0), num: int = 90) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return np.asarray(centre) + radius * np.stack([np.sin(turn), np.cos(turn)], axis=-1)


def spotted(*points: tuple[int, int], shape: tuple[int, int] = (60, 90)) -> np.ndarray:
    plane = np.zeros(shape)
    for point in points:
        plane[point] = 1
    return plane


def test_the_bulls_eye_has_anterior_up_septum_left_and_the_apex_inside():
    at = places(bullseye(np.arange(17) + 100.0))
    radius = {i: np.hypot(*at[str(i)]) for i in range(1, 18)}
    assert at["1"][1] > 0.8
    assert at["1"][0] == pytest.approx(0, abs=1e-9)
    assert at["14"][0] < -0.3
    assert at["14"][1] == pytest.approx(0, abs=1e-9)
    assert at["2"][0] < 0 < at["2"][1]
    assert at["5"][1] < 0 < at["5"][0]
    assert min(radius[i] for i in range(1, 7)) > max(radius[i] for i in range(7, 13)) > radius[13] > radius[17] == 0


def test_a_segment_without_data_is_hatched_and_has_no_number_and_the_rest_its_colour_and_number():
    values = np.linspace(0, 80, 17)
    values[2] = np.nan
    figure = bullseye(values, colours="viridis")
    cells = figure.axes[0].patches
    assert len(cells) == 18
    assert sum(bool(cell.get_hatch()) for cell in cells) == 1
    assert {f"{value:.0f}" for value in values[~np.isnan(values)]} <= {t.get_text() for t in figure.axes[0].texts}
    assert "nan" not in {t.get_text() for t in figure.axes[0].texts}
    assert cells[0].get_facecolor()[:3] == pytest.approx(to_rgb("#440154"), abs=0.01)  # viridis at 0


def test_each_number_stands_in_the_cell_of_its_segment():
    at = places(bullseye(np.arange(17) + 100.0, limits=(0, 200)))
    assert all(at[str(i)] == at[str(99 + i)] for i in range(1, 18))


def test_a_bulls_eye_of_nothing_is_drawn(tmp_path):
    assert save(bullseye(np.full(17, np.nan)), tmp_path / "none.png").stat().st_size > 1000


@pytest.mark.parametrize(("num", "limits", "word"), [(16, (0, 1), "17 values"), (17, (1, 1), "no range")])
def test_a_bulls_eye_of_something_else_is_refused(num, limits, word):
    with pytest.raises(MedsegError, match=word):
        bullseye(np.zeros(num), limits=limits)


def test_strain_is_drawn_in_percent_over_milliseconds_with_both_frames_marked():
    curves = {"radial": np.array([0, 0.3, 0.1]), "circumferential": np.array([0, -0.2, -0.1])}
    figure = strain_curves(np.array([0, 0.04, 0.08]), curves, truth={"radial": curves["radial"] / 2}, ed=0, es=1)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["radial"].get_ydata() == pytest.approx([0, 30, 10])
    assert lines["circumferential"].get_xdata() == pytest.approx([0, 40, 80])
    assert lines["radial, true"].get_ydata() == pytest.approx([0, 15, 5])
    assert lines["radial, true"].get_color() == lines["radial"].get_color()
    assert {word: place[0] for word, place in places(figure).items()} == {"ED": 0, "ES": 40}


def test_strain_curves_of_unlike_lengths_are_refused():
    with pytest.raises(MedsegError, match="'radial': 3, 'times': 2"):
        strain_curves(np.zeros(2), {"radial": np.zeros(3)})


@pytest.mark.parametrize("directions", [None, SEPTUM_DOWN, axes_of(None, septum_deg=20)])
def test_a_contour_is_drawn_over_the_pixels_it_names_however_the_plane_is_turned(directions):
    marks = [(20, 50), (30, 64), (41, 53), (30, 40)]
    plane = spotted(*marks)
    one = Tracked("slice", plane, plane, {"endo": np.array(marks, float)}, {"endo": np.array(marks, float)})
    axes = contour_sheet([one], directions=directions).axes[0]
    shown, line = np.asarray(axes.images[0].get_array()), axes.lines[0].get_xydata()
    assert shown.sum() == 4
    assert [shown[round(y), round(x)] for x, y in line] == [1] * 5


def test_with_the_septum_down_in_the_array_the_sheet_shows_it_on_the_left():
    plane = spotted((45, 50))  # towards the septum
    one = Tracked("slice", plane, plane, {"endo": circle(12)}, {"endo": circle(10)})
    shown = np.asarray(contour_sheet([one], directions=SEPTUM_DOWN).axes[0].images[0].get_array())
    (down,), (right,) = np.nonzero(shown)
    assert right < shown.shape[1] / 3
    assert down == pytest.approx(shown.shape[0] / 2, abs=1)


def test_of_nine_slices_six_are_shown_and_the_title_says_so():
    plane = spotted((30, 50))
    slices = [Tracked(f"slice_{i}", plane, plane, {"endo": circle(12)}, {"endo": circle(9)}) for i in range(9)]
    figure = contour_sheet(slices, title="patient")
    assert len(figure.axes) == 12
    assert figure.get_suptitle() == "patient   6 of 9 slices"


def test_a_reference_is_dashed_and_white():
    plane = spotted((30, 50))
    one = Tracked("s", plane, plane, {"endo": circle(12)}, {"endo": circle(9)}, es_reference={"endo": circle(10)})
    lines = contour_sheet([one]).axes[1].lines
    assert [line.get_color() for line in lines] == [LINES["endo"], "#ffffff"]
    assert lines[1].is_dashed()


def test_a_sheet_of_no_slices_is_refused():
    with pytest.raises(MedsegError, match="no slices"):
        contour_sheet([])


def test_the_crop_leaves_eighteen_mm_about_the_contours_and_stays_inside():
    box = box_about([np.array([[20.0, 40.0], [30.0, 60.0]])], (100, 70), (2.0, 1.0))
    assert (box[0].start, box[0].stop, box[1].start, box[1].stop) == (11, 40, 22, 70)
    assert box_about([], (5, 7), (1.0, 1.0)) == (slice(0, 5), slice(0, 7))


def film(path, *, num: int = 8, directions: Directions | None = None, **more) -> Image.Image:
    noise = np.random.default_rng(0).normal(100, 30, (num, 60, 90))
    contours = {"endo": np.stack([circle(14 - t % 5) for t in range(num)]), "epi": np.stack([circle(20)] * num)}
    return Image.open(animate(noise, path / "film.gif", contours=contours, directions=directions, **more))


@pytest.mark.parametrize("directions", [None, SEPTUM_DOWN])
def test_a_film_has_the_line_of_each_frame_three_times_enlarged_in_its_colour(tmp_path, directions):
    drawn = film(tmp_path, directions=directions)
    assert drawn.n_frames == 8
    assert drawn.info["loop"] == 0
    colour = ImageColor.getrgb(LINES["endo"])
    for t in (0, 3):
        drawn.seek(t)
        pixels = np.asarray(drawn.convert("RGB")).astype(int)[:-24]
        orange = np.argwhere(np.abs(pixels - colour).sum(axis=-1) < 60)
        spread = (orange.max(axis=0) - orange.min(axis=0) + 1) / 3
        assert spread == pytest.approx(2 * (14 - t), abs=1.0)


@pytest.mark.parametrize(("directions", "down_right"), [(None, (18, 24)), (SEPTUM_DOWN, (24, -18))])
def test_a_film_shows_a_spot_under_its_contour_and_turned_as_the_heart_is(tmp_path, directions, down_right):
    frames = np.zeros((2, 60, 90))
    frames[:, 34:39, 56:61] = 100  # 6 below and 8 to the right of the middle of the wall
    contours = {"endo": np.stack([circle(4, centre=(36, 58))] * 2), "epi": np.stack([circle(20)] * 2)}
    path = animate(frames, tmp_path / "spot.gif", contours=contours, directions=directions)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[:-24]
    spot = np.argwhere(pixels.min(axis=-1) > 180).mean(axis=0)
    assert spot == pytest.approx(middle(pixels, "endo"), abs=1.0)
    assert spot - middle(pixels, "epi") == pytest.approx(down_right, abs=1.0)


def middle(pixels: np.ndarray, name: str) -> np.ndarray:
    """(down, right) of the box about all that has the colour of a line."""
    there = np.argwhere(np.abs(pixels - ImageColor.getrgb(LINES[name])).sum(axis=-1) < 60)
    return (there.max(axis=0) + there.min(axis=0)) / 2


def test_a_long_film_of_noise_is_thinned_to_thirty_frames_and_below_its_bound(tmp_path):
    noise = np.random.default_rng(0).normal(100, 30, (36, 100, 100))
    contours = {"endo": np.stack([circle(34, centre=(50, 50))] * 36)}
    path = animate(noise, tmp_path / "noise.gif", contours=contours)
    assert Image.open(path).n_frames == 30
    assert path.stat().st_size <= MOST_BYTES


def test_a_reference_is_drawn_in_its_frame_alone_and_every_other_piece_of_it(tmp_path):
    contours = {"endo": np.stack([circle(9)] * 4)}
    path = animate(np.zeros((4, 60, 90)), tmp_path / "f.gif", contours=contours, reference={2: {"endo": circle(17)}})
    drawn, white = Image.open(path), []
    for t in range(4):
        drawn.seek(t)
        white.append(int((np.asarray(drawn.convert("RGB"))[:-24].min(axis=-1) > 100).sum()))
    assert [n > 0 for n in white] == [False, False, True, False]
    half_a_line = 0.5 * 2 * np.pi * 17 * 3  # pixels long, and between one and two wide
    assert half_a_line < white[2] < 2 * half_a_line


def test_a_contour_of_other_frames_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(MedsegError, match="beside 3 frames"):
        animate(np.zeros((3, 9, 9)), tmp_path / "film.gif", contours={"endo": np.zeros((2, 5, 2))})
    (tmp_path / "full").write_text("a file where a folder is meant")
    with pytest.raises(MedsegError, match="cannot write"):
        animate(np.zeros((1, 9, 9)), tmp_path / "full" / "film.gif", contours={"endo": np.zeros((1, 5, 2))})
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
