"""The page in a real browser: Chromium, which must be installed (.ci/run does it where it can)."""

import io
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from vocabseg.web import site as pages
from vocabseg.web.listening import address_of, listen
from vocabseg.web.shelf import Shelf
from vocabseg.web.site import Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
SECOND = "li:nth-child(2)"
REFUSED = re.compile(r"status of 4(00|10)")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as started, tempfile.TemporaryDirectory() as profile:
        context = started.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, headless=True, viewport={"width": 1280, "height": 900}
        )
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(site.application(), lifespan="off", log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield address_of(listener)
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def page(browser: Any, address: str, searches: list[tuple[int, ...]]) -> Iterator[Any]:
    """The page with the answer to the first example; in the end, nothing came from elsewhere, and nothing failed.

    Refusals, which a browser notes in its console, are no failures: the page tells them.
    """
    opened = browser.new_page()
    requested, complaints = [], []
    opened.on("request", lambda request: requested.append(request.url))
    opened.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector(f"#segments {SECOND}")
    yield opened
    opened.close()
    assert [each for each in complaints if not REFUSED.search(each)] == []
    assert len(requested) > 8
    foreign = [url for url in requested if not url.startswith((address, "data:image/", "blob:"))]
    assert foreign == []


class EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *parts: Any) -> None:
        pass


def asked(page: Any, part: str) -> Any:
    """Waits for the answer to the next request whose address contains `part`."""
    return page.expect_response(lambda response: part in response.url)


def listed(page: Any) -> list[str]:
    return page.locator("#segments li span:nth-child(2)").all_inner_texts()


def test_names_are_asked_again_of_the_same_regions(page: Any, searches, examples) -> None:
    assert sorted(listed(page)) == sorted(examples[0].classes.split(", "))
    assert "finding" in page.inner_text("#status")
    with asked(page, "/view") as drawn:
        page.fill("#names", "grass, brick wall,")
    page.wait_for_selector("#status >> text=not searched again")
    page.wait_for_selector("#segments li:nth-child(3)", state="detached")
    assert sorted(listed(page)) == ["brick wall", "grass"]
    assert listed(page) == [one["name"] for one in drawn.value.json()["segments"]]
    assert searches.count((120, 160)) == 1
    assert re.search(r"naming them: [\d.]+ m?s", page.inner_text("#status"))


def test_a_picture_of_ones_own(page: Any, searches, tmp_path: Path) -> None:
    Image.fromarray(np.full((90, 140, 3), 200, np.uint8)).save(tmp_path / "own.png")
    with asked(page, "/view"):
        page.set_input_files("#file", tmp_path / "own.png")
    assert searches[-2:] == [(120, 160), (90, 140)]
    page.wait_for_selector("#examples button[aria-pressed=false]:first-child")
    page.wait_for_selector("[data-file='overlay.png'][download='own_overlay.png']")
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#error >> text=is not an image that vocabseg can read")


def grey(path: Path, height: int, width: int) -> Path:
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(path)
    return path


@pytest.fixture
def held(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Questions wait for it."""
    go, genuine = threading.Event(), site._answer
    go.set()
    monkeypatch.setattr(site, "_answer", lambda question: go.wait(30) and genuine(question))
    yield go
    go.set()


def test_a_picture_that_is_chosen_while_a_question_waits(page: Any, held, searches, tmp_path: Path) -> None:
    held.clear()
    with page.expect_request("**/api/answers"):
        page.fill("#names", "grass, sky")
    with asked(page, "/api/pictures"):
        page.set_input_files("#file", grey(tmp_path / "larger.png", 300, 400))
    page.wait_for_selector("#examples button[aria-pressed=false]:first-child")
    with asked(page, "/view"):
        held.set()
    page.wait_for_selector("[data-file='overlay.png'][download='larger_overlay.png']")
    assert searches[-1] == (300, 400)
    assert page.locator(".stage svg").get_attribute("viewBox") == "0 0 400 300"


def test_a_slider_before_the_first_answer(browser: Any, address: str, held) -> None:
    held.clear()
    opened, complaints = browser.new_page(), []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    with opened.expect_request("**/api/answers"):
        opened.goto(address)
    opened.fill("#opacity", "0.2")
    opened.wait_for_timeout(150)
    held.set()
    opened.wait_for_selector(f"#segments {SECOND}")
    opened.close()
    assert complaints == []


def test_the_picture_that_was_chosen_last_stays(page: Any, searches, tmp_path: Path, monkeypatch) -> None:
    genuine, read = pages._read, threading.Event()

    def slowly(body: bytes, name: str) -> np.ndarray:
        if name == "slow.png":
            read.wait(30)
            time.sleep(0.2)
        return genuine(body, name)

    monkeypatch.setattr(pages, "_read", slowly)
    with page.expect_request("**/api/pictures?*name=slow.png"):
        page.set_input_files("#file", grey(tmp_path / "slow.png", 50, 60))
    with asked(page, "/view"):
        page.set_input_files("#file", grey(tmp_path / "quick.png", 70, 80))
    with asked(page, "name=slow.png"):
        read.set()
    with asked(page, "/view"):
        page.fill("#names", "grass, sky")
    assert searches[-1] == (70, 80)
    assert (50, 60) not in searches
    assert page.locator("[data-file='overlay.png']").get_attribute("download") == "quick_overlay.png"


def test_a_dropped_picture(page: Any, searches) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((70, 110, 3), 90, np.uint8)).save(buffer, "PNG")
    transfer = page.evaluate_handle(
        "bytes => { const t = new DataTransfer();"
        "t.items.add(new File([new Uint8Array(bytes)], 'd.png', { type: 'image/png' })); return t; }",
        list(buffer.getvalue()),
    )
    with asked(page, "/view"):
        page.dispatch_event("#stages", "drop", {"dataTransfer": transfer})
    assert searches[-2:] == [(120, 160), (70, 110)]


def test_pointer_and_keys_explain_a_pixel(page: Any, site: Site) -> None:
    stage = page.locator(".stage")
    box = stage.bounding_box()
    middle = {"x": box["width"] * 30.5 / 160, "y": box["height"] * 50.5 / 120}
    stage.hover(position=middle)
    told = page.inner_text(".reading")
    with asked(page, "/pixel") as found:
        stage.click(position=middle)
    found = found.value.json()
    assert (found["x"], found["y"]) == (30, 50)
    assert told.startswith(f"30, 50: {found['label']}, score ")
    page.wait_for_selector(".region-card")
    assert page.inner_text("#why > b") == f"{found['label']} at 30, 50"
    assert page.locator(".region-card").first.inner_text().startswith(f"Region {found['votes'][0]['mask']}, weight ")
    with asked(page, "/mask/") as shade:
        page.locator(".region-card").first.hover()
    assert shade.value.ok
    assert page.locator(".stage rect.region").count() == 1
    stage.focus()
    for key in ("ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert page.inner_text(".reading").startswith("31, 60: ")
    with asked(page, "/pixel?x=31&y=60"):
        page.keyboard.press("Enter")
    with asked(page, "/pixel?x=31&y=60"):  # other names are explained at the same pixel
        page.fill("#names", "grass, brick wall")


def test_sliders_and_views_draw_only(page: Any, searches, site: Site) -> None:
    before = page.locator("img.overlay").get_attribute("src")
    questions = []
    page.on("request", lambda request: request.method == "POST" and questions.append(request.url))
    with asked(page, "opacity=0.1") as drawn:
        page.fill("#opacity", "0.1")
    assert drawn.value.json()["picture"] != before
    with asked(page, "min_score=0.9&") as drawn:
        page.fill("#min-score", "0.9")
    count = len(drawn.value.json()["segments"])
    assert count > 0
    page.wait_for_selector(f"#segments li:nth-child({count}):last-child")
    with asked(page, "view=instances&min_score=0.5&opacity=0.1") as drawn:
        page.check("[value=instances]", force=True)
    boxes = len(drawn.value.json()["segments"])
    page.wait_for_selector(f".stage rect >> nth={boxes - 1}", state="attached")
    assert page.locator(".stage rect").count() == boxes >= 3
    with asked(page, "view=panoptic&min_score=0&"):
        page.check("[value=panoptic]", force=True)
    assert questions == []
    assert searches.count((120, 160)) == 1


def test_two_precisions_side_by_side(page: Any, searches, site: Site) -> None:
    if len(site.models.precisions["demo"]) < 2:
        pytest.skip("this CPU runs the demo model in float32 only")
    with asked(page, "/disagreement") as found:
        page.select_option("#compared", "1")
    share = found.value.json()["share"]
    page.wait_for_selector(f"figcaption >> text=Disagreement: {100 * share:.3f} %")
    assert 0 <= share < 0.02
    assert page.locator("figure").count() == 3
    assert page.locator("figcaption b").all_inner_texts()[:2] == ["demo · float32", "demo · bfloat16"]
    assert searches.count((120, 160)) == 2
    page.select_option("#compared", "")
    page.wait_for_selector("figure >> nth=1", state="detached")
    assert searches.count((120, 160)) == 2


def test_downloads(page: Any, examples, tmp_path: Path) -> None:
    saved = {}
    for name in ("overlay.png", "labels.png", "result.json", "coco.json"):
        with page.expect_download() as download:
            page.click(f"[data-file='{name}']")
        assert download.value.suggested_filename == f"scene-20_{name}"
        download.value.save_as(tmp_path / name)
        saved[name] = (tmp_path / name).read_bytes()
    result = json.loads(saved["result.json"])
    assert result["classes"] == examples[0].classes.split(", ")
    labels = np.array(Image.open(io.BytesIO(saved["labels.png"])))
    assert {int(index) for index in np.unique(labels)} == {each["category_id"] for each in result["segments"]}
    assert json.loads(saved["coco.json"])["images"][0]["file_name"] == "scene-20.png"


def test_what_was_forgotten_is_given_again(page: Any, site: Site) -> None:
    site.shelf = Shelf()
    with asked(page, "/view") as drawn:
        page.fill("#names", "grass, brick wall")
    assert len(drawn.value.json()["segments"]) == 2
    site.shelf = Shelf()
    with asked(page, "opacity=0.1"), asked(page, "/api/pictures"):
        page.fill("#opacity", "0.1")
    page.wait_for_selector("#status >> text=finding")
    assert page.is_hidden("#error")


def test_everything_has_a_name_and_fits(browser: Any, page: Any) -> None:
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, textarea, a, [tabindex]')].filter((one) =>"
        " !(one.labels?.length || one.textContent.trim() || one.getAttribute('aria-label')"
        " || one.querySelector('img[alt]:not([alt=\"\"])'))).map((one) => one.outerHTML)"
    )
    assert unnamed == []
    for width in (1280, 800, 400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_another_origin_gets_nothing(browser: Any, address: str) -> None:
    with HTTPServer(("127.0.0.1", 0), EmptyPage) as server:  # another port is another origin
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = browser.new_page()
        opened.goto(f"http://127.0.0.1:{server.server_port}/")
        told = opened.evaluate(
            "async (address) => { const said = [];"
            "for (const how of [{}, { mode: 'no-cors' }, { method: 'POST', body: 'x' }]) {"
            " try { const r = await fetch(address + 'api/pictures?example=0', how); said.push([r.type, r.status]); }"
            " catch { said.push('refused'); } } return said; }",
            address,
        )
        opened.close()
        server.shutdown()
    assert told == ["refused"] * 3
