"""The playground's page in a real browser: pictures are dropped, regions drawn, words typed, answers read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from cloc.playground.settings import Settings
from tests.chromium import Browser, Page, chromium, find_chromium
from tests.conftest import write_dataset
from tests.evaluated_models import write_model, write_public
from tests.playground_server import Server, running

BOARD = "#board"
REGIONS = "[...document.querySelectorAll('#regions button')].map((item) => item.getAttribute('aria-label'))"
# Of each column: model, and the texts of its answer.
COLUMNS = "[...document.querySelectorAll('.model:not([hidden])')].map((item) => item.dataset.model)"
RANKED = (
    "[...document.querySelectorAll('.model:not([hidden])')].map((model) => [...model.querySelectorAll('.region')].map("
    "(region) => [...region.querySelectorAll('.ranking li .untrusted')].map((label) => label.textContent)))"
)
IDLE = "document.querySelector('#status').textContent.startsWith('Answered') && !document.querySelector('.waits')"
MARKUP = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    find_chromium()
    folder = tmp_path_factory.mktemp("playground")
    models = {"CLOC": write_model(folder / "cloc", "cloc"), "CLIP": write_public(folder / "clip")}
    data = write_dataset(folder / "data", 30, sizes=[(320, 240)])
    with running(Settings(models, data=data, cache=str(folder / "cache"))) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """The page, ready; at the end nothing may have gone wrong in it."""
    with browser.open(server.url) as page:
        page.resize(1400, 1000)
        page.wait("document.querySelectorAll('#samples img').length === 24")
        yield page
        assert page.evaluate("document.querySelector('#problem').hidden")
        assert page.problems == []


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image = Image.new("RGB", (640, 480), "gray")
    ImageDraw.Draw(image).rectangle((64, 48, 256, 384), fill="red")
    image.save(path)
    return path


def _opened(page: Page) -> None:
    page.wait("!document.querySelector('#board').hidden && document.querySelector('#status').textContent === ''")


def _draw(page: Page, *corners: tuple[float, float]) -> None:
    page.drag([page.place(BOARD, *corner) for corner in corners])


def test_a_dropped_picture_is_drawn_on_and_its_regions_are_named(page: Page, photo: Path) -> None:
    page.drop_file("#drop", photo)
    _opened(page)
    assert page.evaluate("document.querySelector('#picture-size').textContent") == "640 \u00d7 480"
    _draw(page, (0.1, 0.1), (0.2, 0.3), (0.4, 0.8))
    assert page.wait(REGIONS) == ["Box 1: 0.10 0.10 0.40 0.80"]
    page.type("#labels", f"a red box, a blue key\n{MARKUP}, a red box")
    page.wait(IDLE)
    assert page.evaluate(COLUMNS) == ["CLOC", "CLIP"]
    ranked = page.evaluate(RANKED)
    assert [len(regions) for regions in ranked] == [1, 1]
    assert {tuple(sorted(regions[0])) for regions in ranked} == {(MARKUP, "a blue key", "a red box")}
    scores = page.evaluate(
        "[...document.querySelectorAll('.model .region .score')].map((item) => parseFloat(item.textContent))"
    )
    assert sum(scores) == pytest.approx(200, abs=4)  # percent of two models
    assert page.evaluate("document.title") == "CLOC playground"  # labels are no markup

    page.click("#tool-point")
    page.click(BOARD, 0.75, 0.5)
    page.wait(f"{REGIONS}.length === 2 && {IDLE} && document.querySelectorAll('.region').length === 4")
    assert page.evaluate(REGIONS)[1] == "Point 2: 0.75 0.50"
    page.click("#delete")
    page.wait(f"{IDLE} && document.querySelectorAll('.region').length === 2")
    assert page.evaluate(REGIONS) == ["Box 1: 0.10 0.10 0.40 0.80"]


def test_boxes_are_moved_resized_and_chosen_with_mouse_and_keys(page: Page, photo: Path) -> None:
    page.choose_file("#file", photo)
    _opened(page)
    _draw(page, (0.2, 0.2), (0.4, 0.4))
    _draw(page, (0.3, 0.3), (0.4, 0.35))  # inside the chosen box: it moves
    assert page.evaluate(REGIONS) == ["Box 1: 0.30 0.25 0.50 0.45"]
    _draw(page, (0.5, 0.45), (0.6, 0.6))  # at its corner: it grows
    assert page.evaluate(REGIONS) == ["Box 1: 0.30 0.25 0.60 0.60"]
    _draw(page, (0.6, 0.6), (0.1, 0.1))  # over the opposite corner
    assert page.evaluate(REGIONS) == ["Box 1: 0.10 0.10 0.30 0.25"]
    page.press("ArrowRight")
    page.press("ArrowDown", shift=True)
    assert page.evaluate(REGIONS) == ["Box 1: 0.11 0.10 0.31 0.26"]
    page.press("Escape")
    assert page.evaluate("document.querySelector('#delete').disabled")
    _draw(page, (0.15, 0.15), (0.25, 0.2))  # nothing is chosen: a box inside the other
    assert len(page.evaluate(REGIONS)) == 2
    page.press("Escape")
    page.click(BOARD, 0.12, 0.12)
    assert page.evaluate("document.querySelector('#regions [aria-pressed=\"true\"]').textContent").startswith("1")
    page.press("Delete")
    assert page.evaluate(REGIONS) == ["Box 1: 0.15 0.15 0.25 0.20"]
    page.click("#clear")
    assert page.evaluate(REGIONS) == []
    page.click("#add")  # without any pointer
    assert page.evaluate(REGIONS) == ["Box 1: 0.30 0.30 0.70 0.70"]


def test_a_phrase_is_found_by_both_models(page: Page) -> None:
    page.click("#samples button:nth-child(3)")
    _opened(page)
    assert page.evaluate("document.querySelector('#caption').textContent").startswith("a ")
    page.click("#tab-find")
    page.type("#phrase", "the red box")
    page.press("Enter")
    page.wait(IDLE)
    sizes = "[...document.querySelectorAll('.heat img')].map((item) => [item.naturalWidth, item.naturalHeight])"
    assert page.evaluate(sizes) == [[800, 600], [800, 600]]
    assert page.evaluate(
        "[...document.querySelectorAll('.model')].map((m) => m.querySelectorAll('.found').length)"
    ) == [
        1,
        0,
    ]
    says = page.evaluate("[...document.querySelectorAll('.found-says')].map((item) => item.textContent)")
    assert says[0].startswith("Green: the model's box")
    assert says[1].startswith("No box")
    page.evaluate(
        "(() => { const s = document.querySelector('.model select'); s.value = 'roi_align';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    page.wait(IDLE)
    assert page.evaluate("document.querySelector('.model select').value") == "roi_align"


def test_the_data_is_searched_by_text_and_by_region(page: Page) -> None:
    page.click("#tab-search")
    page.type("#query", "a blue key")
    page.press("Enter")
    page.wait(f"{IDLE} && document.querySelectorAll('.hits img').length === 24")
    page.click(".model:last-child .hits button")
    _opened(page)
    if not page.evaluate(REGIONS):  # the whole image was best
        page.click("#add")
    page.click("#alike")
    page.wait(f"{IDLE} && document.querySelectorAll('.hits img').length === 24")
    scores = page.evaluate(
        "[...document.querySelectorAll('.model:last-child .hits .score')].map((s) => +s.textContent)"
    )
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.5


def test_samples_go_on_and_back(page: Page) -> None:
    assert page.evaluate("document.querySelector('#samples-count').textContent") == "1\u201324 of 30"
    page.click("#samples-on")
    page.wait("document.querySelectorAll('#samples img').length === 6")
    assert page.evaluate("document.querySelector('#samples-on').disabled")
    page.click("#samples-back")
    page.wait("document.querySelectorAll('#samples img').length === 24")


def test_a_finger_draws_on_a_phone(page: Page, photo: Path) -> None:
    page.resize(390, 844, phone=True, dark=True)
    page.choose_file("#file", photo)
    _opened(page)
    page.swipe([page.place(BOARD, *place) for place in ((0.2, 0.2), (0.4, 0.3), (0.6, 0.7))])
    assert page.wait(REGIONS) == ["Box 1: 0.20 0.20 0.60 0.70"]
    page.type("#labels", "a red box, a blue key")
    page.wait(IDLE)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out
    left = page.evaluate("[...document.querySelectorAll('.model')].map((m) => m.getBoundingClientRect().left)")
    assert left[0] == left[1]  # one below the other


def test_a_file_that_is_no_picture_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    page.drop_file("#drop", tmp_path / "notes.jpg")
    page.wait("!document.querySelector('#problem').hidden")
    assert page.evaluate("document.querySelector('#problem').textContent") == (
        "the file: not an image (jpeg, png, webp)"
    )
    page.problems.clear()  # the browser notes the refusal
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(20 * 2**20 + 1)
    page.drop_file("#drop", tmp_path / "large.jpg")
    page.wait("document.querySelector('#problem').textContent === 'large.jpg: larger than 20 MiB'")
    page.click("#samples button")
    page.wait("document.querySelector('#problem').hidden")


def test_the_documentation_lists_every_operation(server: Server, browser: Browser) -> None:
    with browser.open(f"{server.url}/docs") as page:
        shown = page.evaluate("[...document.querySelectorAll('article h3 .mono')].map((item) => item.textContent)")
        assert set(shown) == set(server.get("/openapi.json").json["paths"])
        links = "[...document.querySelectorAll('a[href^=\"#\"]')]"
        assert page.evaluate(f"{links}.length > 10 && {links}.every((a) => document.querySelector(a.hash))")
        assert page.problems == []
