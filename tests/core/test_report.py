"""The page: all of it in one file, true to the numbers, safe to open."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg_core import report
from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation, Pair, evaluate, from_rows
from medseg_core.folders import evaluate_folders
from medseg_core.io import write_volume
from medseg_core.report import write_report
from medseg_core.settings import ScoreConfig
from medseg_core.volume import Volume

EVIL = "<script>alert(1)</script>"
LABELS = {1: "liver", 2: "spleen", 3: f"<img src=x onerror=alert(2)>{EVIL}"}
GROUPS = {"liver": "organs", "spleen": "</option>" + EVIL}


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += " " + data.strip()


def cohort(tmp_path: Path) -> Evaluation:
    """Four cases of two and three structures: shifted, one spleen missed, one third structure invented."""

    def pairs():
        label = np.zeros((24, 20, 16), np.uint8)
        label[4:12, 4:16, 3:12], label[14:20, 5:15, 4:10] = 1, 2
        for n, name in enumerate(("a", "b", EVIL, "d")):
            mask = np.roll(label, n, axis=0)
            if name == "b":
                mask[mask == 2] = 0
            if name == "d":
                mask[0:2, 0:2, 0:2] = 3
            yield Pair(name, mask, label, (2.0, 2.0, 3.0), images={"ct": label * 50.0}, affine=np.diag([-2, -2, 3, 1]))

    return evaluate(pairs(), LABELS, out=tmp_path, groups=GROUPS)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return cohort(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def shown(phantom: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("report"), phantom)


def written(out: Path, evaluation: Evaluation) -> Path:
    curves = out / "training_curves.png"
    Image.new("RGB", (3000, 400), "teal").save(curves)
    notes = ["trained without validation"]
    return write_report(out, evaluation, title=f"Phantom {EVIL}", pictures=[curves], notes=notes)


def test_the_headline_says_what_the_summary_says(shown: Path, phantom: Evaluation):
    text = Page(shown).text
    dice = phantom.summary()[0]
    assert f"{dice['mean']:.3f} mean Dice" in text
    assert f"[{dice['low']:.3f}, {dice['high']:.3f}]" in text
    assert "0.000 baseline “empty”" in text
    assert "1 missed" in text
    assert "1 invented" in text


def test_the_page_says_what_it_is_not_and_how_numbers_are_made(shown: Path):
    page = Page(shown)
    assert "Not a medical device" in page.text
    assert "trained without validation" in page.text
    assert ("a", {"href": "#how"}) in page.tags
    assert "how" in {attributes.get("id") for _, attributes in page.tags}
    assert "tolerance of 3 mm" in page.text


def test_names_are_printed_and_never_run(shown: Path):
    page = Page(shown)
    assert EVIL in page.text
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert [tag for tag, _ in page.tags].count("script") == 3  # plotly, the surfaces, the sorting


def test_nothing_is_loaded_from_elsewhere(shown: Path):
    for tag, attributes in Page(shown).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            where = attributes.get(name) or "#"
            assert where.startswith(("data:", "#")), (tag, where[:80])


def test_plotly_is_embedded_once_and_cannot_upload(shown: Path):
    text = shown.read_text(encoding="utf-8")
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert re.search(r'"showSendToCloud":\s*false', text)


def test_pictures_are_embedded_no_wider_than_they_are_looked_at(shown: Path):
    images = [attributes for tag, attributes in Page(shown).tags if tag == "img"]
    assert [image["alt"] for image in images][-1] == "training curves"
    assert len(images) == 7  # detection, distributions, ranking, the two worst cases of four and the best, curves
    assert "Overlays Worst case: d" in Page(shown).text


@pytest.mark.parametrize(
    ("num", "words"),
    [
        (0, []),
        (1, ["worst"]),
        (3, ["worst", "median", "best"]),
        (20, ["worst", "2nd worst", "3rd worst", "4th worst", "median", "best"]),
    ],
)
def test_the_worst_the_median_and_the_best_are_shown(num: int, words: list[str]):
    shown = report.shown_cases(range(num))
    assert list(shown) == words
    assert list(shown.values()) == sorted(set(shown.values()))
    assert num < 3 or (shown["worst"], shown["median"], shown["best"]) == (0, (num - 1) // 2, num - 1)


def test_pictures_beyond_the_size_of_a_page_are_named_instead(
    phantom: Evaluation, shown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    heavy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    pictures = [tmp_path / f"heavy_{n}.png" for n in range(2)]
    for picture in pictures:
        heavy.save(picture)  # about 480 kB, 640 kB as text
    monkeypatch.setattr(report, "MAX_BYTES", shown.stat().st_size + 1_000_000)
    path = write_report(tmp_path, phantom, title="Heavy", pictures=pictures)
    assert path.stat().st_size < report.MAX_BYTES
    page = Page(path)
    assert "Heavy 0" in page.text
    assert "heavy_1.png was left out to keep this page under" in page.text


def test_a_full_scan_of_structures_fits(data: Path, tmp_path: Path):
    folder = data / "ct_multiorgan" / "ts_s0001"
    label, mask = (nib.load(folder / f"seg_multilabel_v1_104{kind}.nii.gz") for kind in ("", "_fast"))
    ids = (np.asarray(image.dataobj).astype(np.uint8) for image in (mask, label))
    pair = Pair("s0001", *ids, (3.0, 3.0, 3.0), images={"ct": np.asarray(nib.load(folder / "ct.nii.gz").dataobj)})
    evaluation = evaluate([replace(pair, affine=label.affine)], {i: f"s{i}" for i in range(1, 105)}, out=tmp_path)
    path = write_report(tmp_path, evaluation, title="s0001")
    assert path.stat().st_size < 10_000_000
    assert "0.916 mean Dice" in Page(path).text


def test_numbers_that_are_not_about_masks_get_the_same_page(tmp_path: Path):
    rows = [{"case": f"c{n}", "tre_mm": float(n), "model": model} for n in range(5) for model in ("", "identity")]
    page = Page(write_report(tmp_path, from_rows(rows), title="Motion"))
    assert "2.00 mean tre (mm)" in page.text
    assert "Missed" not in page.text
    assert "baseline “identity”" in page.text
    assert "plotly" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("most", "kind"), [(2_000_000, "gif"), (100, "png")])
def test_a_gif_goes_into_the_page_as_it_is_unless_it_is_heavy(
    most: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report, "MOVING_BYTES", most)
    film = tmp_path / "beating_heart.gif"
    first, *rest = [Image.new("RGB", (2000, 60), colour) for colour in ("red", "teal", "white")]
    first.save(film, save_all=True, append_images=rest, duration=50, loop=0)
    rows = [{"case": f"c{n}", "tre_mm": float(n)} for n in range(3)]
    page = Page(write_report(tmp_path, from_rows(rows), title="Motion", pictures=[film]))
    (shown,) = [attributes for tag, attributes in page.tags if attributes.get("alt") == "beating heart"]
    head, _, content = shown["src"].partition("base64,")
    assert head == f"data:image/{kind};"
    with Image.open(io.BytesIO(base64.b64decode(content))) as seen:
        assert (getattr(seen, "n_frames", 1), seen.width) == ((3, 2000) if kind == "gif" else (1, 1600))
    assert (base64.b64decode(content) == film.read_bytes()) == (kind == "gif")


def test_equal_evaluations_leave_equal_pages(shown: Path, tmp_path: Path):
    assert written(tmp_path, cohort(tmp_path)).read_bytes() == shown.read_bytes()


def test_a_picture_that_is_not_there_is_named(phantom: Evaluation, tmp_path: Path):
    with pytest.raises(MedsegError, match=r"curves\.png"):
        write_report(tmp_path, phantom, title="Phantom", pictures=[tmp_path / "curves.png"])


def test_an_evaluation_of_nothing_is_refused(tmp_path: Path):
    empty = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(MedsegError, match="no row"):
        write_report(tmp_path, evaluate([Pair("a", empty, empty, (1.0, 1.0, 1.0))], LABELS), title="Nothing")


def test_the_template_is_a_part_of_the_package():
    assert files("medseg_core").joinpath("report.html.j2").is_file()


@pytest.fixture
def opened(chromium):
    """What opens a report; at the end there was no error, no dialog and no request."""
    wrong, asked, pages = [], [], []

    def at(report: Path):
        page = chromium.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        pages.append(report.as_uri())
        return page

    yield at
    assert wrong == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == pages


def column(page, after: str, number: int) -> list[str]:
    """Texts of a column of the first table after a heading."""
    cells = page.locator(f"{after} ~ .wide table").first.locator(f"tbody td:nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def click(page, after: str, head: str) -> None:
    page.locator(f"{after} ~ .wide table").first.get_by_role("button", name=head, exact=True).click()


def test_a_browser_sorts_the_tables_and_filters_them(shown: Path, opened):
    page = opened(shown)
    click(page, "#structures", "Dice")
    assert column(page, "#structures", 6) == sorted(column(page, "#structures", 6), reverse=True)
    click(page, "#structures", "Dice")
    assert column(page, "#structures", 6) == sorted(column(page, "#structures", 6))
    click(page, "#structures", "Structure")
    assert column(page, "#structures", 1) == sorted(column(page, "#structures", 1))
    page.locator("#group").select_option("organs")
    assert page.locator("tr[data-group]:visible").count() == 1


def test_a_browser_turns_the_surfaces_and_shows_either_side(shown: Path, opened):
    page = opened(shown)
    scene = page.locator("#view3d")
    scene.locator("canvas").first.wait_for(state="attached")
    scene.scroll_into_view_if_needed()
    eye = "JSON.stringify(document.getElementById('view3d')._fullLayout.scene.camera.eye)"
    before, box = page.evaluate(eye), scene.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 120, box["y"] + box["height"] / 2 + 40, steps=6)
    page.mouse.up()
    page.wait_for_function(f"{eye} !== {before!r}")
    scene.locator(".updatemenu-button", has_text="Reference").click()
    seen = page.evaluate(
        "document.getElementById('view3d').data.filter(trace => trace.visible).map(trace => trace.meta)"
    )
    assert set(seen) == {"reference"}
    assert page.locator(".modebar-btn[data-title^='Share']").count() == 0


def test_a_browser_shows_the_comparison_of_two_models_and_the_audit(tmp_path: Path, opened):
    rng = np.random.default_rng(0)
    for n in range(5):
        label = np.pad(np.ones((6, 5, 4), np.uint8), 4)
        label[2:4, 2:4, 2:4] = 2
        for folder, most in (("ref", 0), ("ours", 1), ("theirs", 3)):
            moved = np.roll(label, rng.integers(-most, most + 1, 3), (0, 1, 2))
            write_volume(Volume(moved, np.diag((1.0, 1, 2, 1))), tmp_path / folder / f"c{n}.nii.gz")
    how = {"labels": {1: f"liver {EVIL}", 2: "spleen"}, "compare": tmp_path / "theirs"}
    evaluate_folders(tmp_path / "ours", tmp_path / "ref", tmp_path / "out", ScoreConfig(workers=1), **how)
    page = opened(tmp_path / "out" / "report.html")
    assert "NSD (3\u00a0mm)" in column(page, "#comparison", 1)
    click(page, "#comparison", "Difference")
    gaps = [float(text) for text in column(page, "#comparison", 4)]
    assert gaps == sorted(gaps, reverse=True)
    assert page.locator("#audit").is_visible()
    assert page.locator("img[alt^='Differences of Dice']").count() == 1
