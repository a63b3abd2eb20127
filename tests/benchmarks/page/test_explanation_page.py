"""The page that tells why pixels have their labels: what a browser shows is what the result says."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import vocabseg
from tests.golden import REPOSITORY
from vocabseg.benchmarks.page.explanation import to_explanation_page
from vocabseg.runtime.images import load_image
from vocabseg.runtime.result.result import Result

HOSTILE = "</script><b>&amp;"
NAMES = [HOSTILE, "grass", "cloudy sky", "water", "orange arrow", "purple ring"]
# Clicks into the middle of the picture, once it is there, and shows all masks.
CLICK = """<script>setTimeout(() => {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
  canvas.onclick({ clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 });
  byId("more").click();
}, 1000)</script></body>"""


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return load_image(REPOSITORY / "examples" / "scene.png")


@pytest.fixture(scope="module")
def segmenter():
    return vocabseg.load(device="cpu")


def shown(page: str, folder: Path) -> str:
    """The page's elements once its script has run in a browser without a network."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    (folder / "page.html").write_text(page, encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=6000", "--dump-dom")
    where = (f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND")
    command = [browser, *flags, *where, (folder / "page.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def votes_of(dom: str) -> dict[int, float]:
    """Votes by mask, as the cards give them; those too small for four digits are 0."""
    cards = re.findall(r"<button[^>]*>Mask (\d+)</button><b[^>]*>([^<]*?) votes", dom)
    return {int(mask): 0.0 if text.startswith("&lt;") else float(text) for mask, text in cards}


def test_a_browser_shows_what_the_result_says(segmenter, image, tmp_path) -> None:
    colours = [None] * 4 + ["#12ab34", None]
    result = segmenter(image, vocabseg.Vocabulary(NAMES, seen=["water"], other=True, colours=colours))
    found = result.explain(237, 140)
    page = to_explanation_page(result, f"{HOSTILE}.png", "demo", [(237, 140)])
    assert len(page) < 400_000
    assert "<b>" not in page
    assert "http://" not in page
    assert "https://" not in page
    dom = shown(page, tmp_path)
    assert '<h2 id="title">orange arrow</h2>' in dom
    assert '<span class="swatch" style="background: rgb(18, 171, 52);"></span><span>orange arrow</span>' in dom
    assert "query^0.3 × CLIP^0.7, as for classes not seen in training.</p>" in dom
    scores = re.findall(r'<span class="number">([\d.]+)</span></button>', dom)
    assert [float(score) for score in scores] == pytest.approx([r.value for r in found.scores], abs=1e-4)
    expected = {vote.mask: vote.votes for vote in found.votes[:6]}
    assert votes_of(dom) == pytest.approx(expected, abs=1e-4)
    best = found.votes[0]
    for side, title in ((best.combined, "Together"), (best.query, "By query"), (best.clip, "By CLIP")):
        assert re.search(rf">{title}</h3><ol><li[^>]*><span[^>]*>orange arrow</span>[^>]*>{side[0].value:.4f}<", dom)
    clicked = shown(page.replace("</body>", CLICK), tmp_path)
    where = re.search(r"Pixel (\d+),(\d+);", clicked)
    assert where is not None
    middle = result.explain(int(where[1]), int(where[2]))
    assert abs(middle.x - 240) <= 3
    assert f'<h2 id="title">{middle.label}' in clicked
    listed = votes_of(clicked)
    assert len(listed) > 6
    assert listed == pytest.approx({v.mask: v.votes for v in middle.votes if v.mask in listed}, abs=0.003)


def test_pages_of_every_kind_of_result(segmenter, image, tmp_path) -> None:
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, 20:90, 30:200] = True
    own = segmenter.regions(image, masks).classify(NAMES)
    nothing = segmenter.regions(image, masks[:0]).classify(NAMES)
    plain = Result(own.labels, own.scores, NAMES, None, own.evidence)
    for result, voters in ((own, 1), (nothing, 0), (plain, 1)):
        page = to_explanation_page(result, "a.png", "demo")
        assert page.count('"mask":') == voters
        assert '"query":null' in page
        assert '"power":null' in page  # CLIP alone decides
    assert nothing.explain(0, 0).votes == ()
    with pytest.raises(vocabseg.VocabsegError, match="only labels and scores"):
        to_explanation_page(Result(own.labels, own.scores, NAMES), "a.png", "demo")
    dom = shown(to_explanation_page(nothing, "a.png", "demo"), tmp_path)
    assert '<h2 id="title">no class</h2>' in dom
    assert 'id="more" hidden' in dom  # the script came to its end
