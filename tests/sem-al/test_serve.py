"""The page on which masks are corrected: who may ask it, what it saves, and a person's hand in a real browser."""

import http.client
import json
from urllib.parse import urlsplit

import numpy as np
import pytest

from medseg_core.io import read_picture, write_picture, write_text
from medseg_core.volume import Picture
from medseg_sem_al.index import build_index
from medseg_sem_al.phantom import phantom
from medseg_sem_al.proposals import write_indexed
from medseg_sem_al.serve import served
from medseg_sem_al.settings import IndexConfig

EDGE = 64


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = phantom(tmp_path_factory.mktemp("page") / "data", num_images=3, num_labelled=3, size=EDGE)
    return build_index(root, IndexConfig())


@pytest.fixture
def watch(tmp_path):
    """A round that waits for two masks, proposed to be all carbon (0) and half SE (1)."""
    home, half = tmp_path / "watch" / "round_01", np.zeros((EDGE, EDGE), np.uint8)
    half[:, EDGE // 2 :] = 1
    boxes = {"s00_000": [0, 0, EDGE, EDGE], "s00_001": [0, 0, 32, 32]}
    for name, ids in zip(boxes, (np.zeros_like(half), half), strict=True):
        write_indexed(ids, [(0, 0, 255), (0, 255, 255), (255, 126, 126)], home / "proposals" / f"{name}.png")
        write_picture(Picture(np.full((EDGE, EDGE, 3), 90, np.uint8)), home / "heat" / f"{name}.png")
    write_text(home / "selection.json", json.dumps({"chosen": [{"case": n, "box": b} for n, b in boxes.items()]}))
    (home / "labels").mkdir()
    return tmp_path / "watch"


@pytest.fixture
def address(index, watch):
    with served(index, watch) as found:
        yield found


def asked(address, path, *, method="GET", body=None, token=None, **headers):
    """Status, headers and content of an answer."""
    parts = urlsplit(address)
    link = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    given = {
        "X-Token": parts.fragment if token is None else token,
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    link.request(method, path, body, given)
    answer = link.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def saved(watch, name="s00_000"):
    return read_picture(watch / "round_01" / "labels" / f"{name}.png").pixels


def test_pictures_classes_and_parts_are_told(address):
    status, _, content = asked(address, "/api/state")
    told = json.loads(content)
    assert (status, told["round"], [row["name"] for row in told["classes"]]) == (200, 1, ["carbon", "SE", "AM"])
    assert told["pictures"][1] == {"name": "s00_001", "boxes": [[0, 0, 32, 32]], "taken": False, "refused": ""}


@pytest.mark.parametrize("path", ["/api/state", "/api/image/s00_000", "/api/mask/s00_000", "/api/heat/s00_000"])
def test_without_the_token_nothing_is_told(address, path):
    assert asked(address, path, token="wrong")[0] == 403
    assert asked(address, path)[0] == 200


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_another_host_or_origin_is_refused(address, headers):
    assert asked(address, "/api/state", **headers)[0] == 403
    assert asked(address, "/", **headers)[0] == 403


def test_it_listens_on_this_machine_alone(address):
    assert urlsplit(address).hostname == "127.0.0.1"


def test_the_page_may_load_nothing_from_elsewhere(address):
    _, headers, content = asked(address, "/", token="")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http" not in content


def test_a_mask_is_saved_for_the_loop_to_take(address, watch):
    _, headers, content = asked(address, "/api/mask/s00_000")
    ids = bytearray(content)
    ids[5], ids[6] = 2, 255
    status, after, _ = asked(
        address, "/api/mask/s00_000", method="POST", body=bytes(ids), X_Version=headers["X-Version"]
    )
    assert status == 200
    assert saved(watch)[0, 4:8].tolist() == [0, 2, 255, 0]
    assert asked(address, "/api/mask/s00_000")[1]["X-Version"] == after["X-Version"]


def test_who_saves_second_is_told_and_writes_nothing(address, watch):
    version = asked(address, "/api/mask/s00_000")[1]["X-Version"]
    first, second = (bytes([k]) * EDGE**2 for k in (1, 2))
    assert asked(address, "/api/mask/s00_000", method="POST", body=first, X_Version=version)[0] == 200
    status, _, content = asked(address, "/api/mask/s00_000", method="POST", body=second, X_Version=version)
    assert (status, content) == (409, b"Somebody saved s00_000 since you opened it.\n")
    assert (saved(watch) == 1).all()


def test_a_mask_that_was_saved_in_a_program_is_gone_on_with(address, watch):
    write_indexed(
        np.full((EDGE, EDGE), 2, np.uint8),
        [(0, 0, 255), (0, 255, 255), (255, 126, 126)],
        watch / "round_01" / "labels" / "s00_000.tif",
    )
    assert set(asked(address, "/api/mask/s00_000")[2]) == {2}
    mine = bytes([1]) * EDGE**2
    assert asked(address, "/api/mask/s00_000", method="POST", body=mine, X_Version="any")[0] == 200
    assert (saved(watch) == 1).all()
    assert (read_picture(watch / "backups" / "s00_000-000.tif").pixels == 2).all()  # nothing is lost


@pytest.mark.parametrize("body", [b"\0" * 10, b"\7" * EDGE**2, b"\0" * (EDGE**2 + 1)])
def test_what_is_no_mask_is_refused(address, watch, body):
    assert asked(address, "/api/mask/s00_000", method="POST", body=body, X_Version="any")[0] in (400, 413)
    assert not list((watch / "round_01" / "labels").iterdir())


@pytest.mark.parametrize("name", ["s00_002", "..%2F..%2Floop", "nobody"])
def test_what_was_not_asked_for_is_not_there(address, name):
    assert asked(address, f"/api/mask/{name}")[0] == 404
    assert asked(address, f"/api/mask/{name}", method="POST", body=b"", X_Version="any")[0] == 404


@pytest.fixture
def opened(chromium, address):
    """A function that opens the page; at the end no page may have complained or asked anybody else."""
    pages, wrong = [], []

    def page():
        one = chromium.new_page(viewport={"width": 1100, "height": 760})
        one.on("pageerror", lambda error: wrong.append(str(error)))
        one.on(
            "request",
            lambda request: (
                wrong.append(request.url)
                if "127.0.0.1" not in request.url and not request.url.startswith(("blob:", "data:"))
                else None
            ),
        )
        one.goto(address)
        one.wait_for_selector("#where:has-text('s00_000')")
        pages.append(one)
        return one

    yield page
    for one in pages:
        one.close()
    assert not wrong


def at(page, x, y):
    """Where a pixel of the picture is on the screen."""
    box = page.locator("#mask").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / EDGE, box["y"] + (y + 0.5) * box["height"] / EDGE


def paint(page, *pixels):
    page.mouse.move(*at(page, *pixels[0]))
    page.mouse.down()
    for pixel in pixels[1:]:
        page.mouse.move(*at(page, *pixel))
    page.mouse.up()


def save(page):
    page.click("#save")
    page.wait_for_selector("#message:has-text('is saved')")


@pytest.mark.slow
def test_a_hand_paints_takes_back_and_saves(opened, watch):
    page = opened()
    page.keyboard.press("3")  # AM
    page.fill("#radius", "3")
    paint(page, (10, 20), (30, 20))
    page.keyboard.press("2")  # SE
    paint(page, (40, 50))
    page.click("#undo")
    save(page)
    mask = saved(watch)
    assert set(np.unique(mask)) == {0, 2}
    assert (mask[20, 10:31] == 2).all()
    assert (mask == 2)[:17].sum() == (mask == 2)[24:].sum() == 0
    page.click("#redo")
    save(page)
    assert saved(watch)[50, 40] == 1


@pytest.mark.slow
def test_fill_polygon_and_eraser(opened, watch):
    page = opened()
    page.click("nav button[data-name='s00_001']")
    page.wait_for_selector("#where:has-text('s00_001')")
    page.keyboard.press("3")
    page.keyboard.press("f")
    page.mouse.click(*at(page, 50, 10))  # the half that is SE
    page.keyboard.press("e")
    page.keyboard.press("p")
    for x, y in ((4, 4), (20, 4), (20, 24), (4, 24)):
        page.mouse.click(*at(page, x - 0.5, y - 0.5))  # corners of pixels
    page.keyboard.press("Enter")
    save(page)
    mask = saved(watch, "s00_001")
    assert (mask[:, 32:] == 2).all()
    erased = np.zeros_like(mask, bool)
    erased[4:24, 4:20] = True
    assert np.array_equal(mask == 255, erased)


@pytest.mark.slow
def test_two_pages_on_one_picture_do_not_overwrite_each_other_in_silence(opened, watch):
    one, other = opened(), opened()
    for page, key in ((one, "2"), (other, "3")):
        page.keyboard.press(key)
        paint(page, (32, 32))
    save(one)
    other.click("#save")
    other.wait_for_selector("#message.bad:has-text('Somebody saved s00_000 since you opened it')")
    assert saved(watch)[32, 32] == 1
    other.click("footer button:has-text('Save mine over it')")
    other.wait_for_selector("#message:has-text('is saved')")
    assert saved(watch)[32, 32] == 2


@pytest.mark.slow
def test_zoom_keeps_hand_and_picture_together(opened, watch):
    page = opened()
    page.mouse.move(*at(page, 40, 12))
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.press("2")
    page.fill("#radius", "1")
    paint(page, (40, 12))
    save(page)
    assert np.argwhere(saved(watch) == 1).tolist() == [[12, 40]]


@pytest.mark.slow
def test_changes_that_are_not_saved_are_asked_about(opened):
    page = opened()
    page.keyboard.press("2")
    paint(page, (32, 32))
    page.click("nav button[data-name='s00_001']")
    page.wait_for_selector("#message.bad:has-text('s00_000 is not saved')")
    page.click("footer button:has-text('Save it')")
    page.wait_for_selector("#where:has-text('s00_001')")
