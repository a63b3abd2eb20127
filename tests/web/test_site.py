"""What the page's addresses answer, without a browser."""

import gc
import gzip
import io
import json
import re
import weakref
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.web import drawing, site
from vocabseg.web.models import OPEN, Models
from vocabseg.web.site import FOLDER, LONGEST, PAGE, Site

TestClient = pytest.importorskip("starlette.testclient").TestClient


@pytest.fixture
def client(site: Site) -> Any:
    return TestClient(site.application(), base_url="http://localhost:7860")


class Visitor:
    """A page's requests."""

    def __init__(self, client: Any, page: str = "a page"):
        self.client, self.page = client, page

    def choose(self, example: int = 0) -> str:
        return self.client.post("/api/pictures", params={"page": self.page, "example": example}).json()["picture"]

    def ask(
        self, picture: str, names: str, precision: str = "float32", other: bool = False, model: str = "demo"
    ) -> Any:
        question = {"picture": picture, "model": model, "precision": precision, "names": names, "other": other}
        return self.client.post("/api/answers", json=question)

    def get(self, answer: dict[str, Any], what: str, **asked: Any) -> Any:
        return self.client.get(f"/api/answers/{answer['answer']}/{what}", params=asked)


@pytest.fixture
def visitor(client: Any) -> Visitor:
    return Visitor(client)


def test_other_names_are_answered_from_the_same_regions(visitor, models: Models, examples, searches) -> None:
    segmenter = models.segmenter("demo", "float32")
    regions = segmenter.propose(examples[0].image)
    searches.clear()
    picture = visitor.choose()
    reused = []
    for names in (examples[0].classes, "orange circle, wooden floor", "orange circle|orange ring, cloudy sky"):
        answer = visitor.ask(picture, names).json()
        reused.append(answer["reused"])
        expected = regions.classify(names)
        assert answer["classes"] == expected.classes
        body = visitor.get(answer, "hovered").content
        labels = np.frombuffer(body, "<i2", 120 * 160).reshape(120, 160)
        np.testing.assert_array_equal(labels, expected.labels)
        scores = np.frombuffer(body, np.uint8, offset=labels.nbytes).reshape(120, 160) / 255
        np.testing.assert_allclose(scores, np.minimum(expected.scores, 1), atol=0.51 / 255)
        assert answer["regions"] == int(regions.valid.sum()) > 4
    assert (searches, reused) == ([(120, 160)], [False, True, True])
    assert visitor.ask(picture, "cat").json()["remark"] == "unknown to it"
    other = visitor.ask(picture, "orange circle", other=True).json()
    assert other["classes"] == ["orange circle", "other"]


def test_what_is_drawn_is_what_the_library_draws(models: Models, examples) -> None:
    result = models.segmenter("demo", "float32")(examples[0].image, examples[0].classes)
    drawn = drawing.view(result, "semantic", 0.5)
    expected = result.confident(0.5)
    np.testing.assert_array_equal(
        drawn.picture(result.image, 0.3), expected.draw(legend=False, opacity=0.3, labels=False)
    )
    described = {segment["name"]: (segment["area"], segment["score"]) for segment in expected.to_json()["segments"]}
    assert {one["name"] for one in drawn.segments} == described.keys()
    for one in drawn.segments:
        area, score = described[one["name"]]
        assert one["share"] * expected.labels.size == pytest.approx(area)
        assert one["score"] == pytest.approx(score)


def test_views_of_objects(models: Models, examples) -> None:
    result = models.segmenter("demo", "float32")(examples[0].image, examples[0].classes)
    segmentation, segments = result.panoptic()
    drawn = drawing.view(result, "panoptic", 0.0)
    assert len(drawn.segments) == len(segments) >= 4
    for place, one in enumerate(drawn.segments):
        (same,) = (each for each in segments if each["area"] == round(one["share"] * segmentation.size))
        np.testing.assert_array_equal(drawn.labels == place, segmentation == same["id"])
        assert one["name"] == result.classes[same["category_id"]]
    limit = sorted(segment["score"] for segment in segments)[1]
    assert len(drawing.view(result, "panoptic", limit).segments) == len(segments) - 1

    found = [one for one in result.instances() if one.score >= 0.5]
    drawn = drawing.view(result, "instances", 0.5)
    assert [one["box"] for one in drawn.segments] == [one.box for one in found]
    np.testing.assert_array_equal(drawn.labels == 0, found[0].mask)
    np.testing.assert_array_equal(drawn.labels >= 0, np.any([one.mask for one in found], axis=0))


def test_a_view_is_a_picture_and_a_list(visitor, examples) -> None:
    answer = visitor.ask(visitor.choose(), examples[0].classes).json()
    told = visitor.get(answer, "view", view="panoptic", opacity=0.2).json()
    assert told["picture"].startswith("data:image/jpeg;base64,")
    assert len(told["segments"]) >= 4
    for asked, line in (
        ({"view": "x-ray"}, "there is no view 'x-ray': use one of semantic, panoptic, instances"),
        ({"opacity": "2"}, "opacity is '2': give a number from 0 to 1"),
        ({"min_score": "nan"}, "min_score is 'nan': give a number from 0 to 1"),
    ):
        refused = visitor.get(answer, "view", **asked)
        assert (refused.status_code, refused.json()["error"]) == (400, line)


def test_a_pixel_is_explained(visitor, models: Models, examples) -> None:
    answer = visitor.ask(visitor.choose(), examples[0].classes).json()
    result = models.segmenter("demo", "float32")(examples[0].image, examples[0].classes)
    told = visitor.get(answer, "pixel", x=30, y=50).json()
    assert told == json.loads(json.dumps(result.explain(30, 50).to_json(6)))
    vote = told["votes"][0]
    shade = Image.open(io.BytesIO(visitor.get(answer, f"mask/{vote['mask']}").content))
    assert (shade.mode, shade.size) == ("RGBA", (160, 120))
    assert shade.getpixel((30, 50))[3] == pytest.approx(190 * (1 - vote["weight"]), abs=1)
    outside = visitor.get(answer, "pixel", x=160, y=0)
    assert outside.status_code == 400
    assert "160" in outside.json()["error"]
    assert visitor.get(answer, "pixel", x="-1", y=0).json()["error"] == "'-1' is no whole number from 0: give one"
    assert visitor.get(answer, "mask/999").status_code == 400


def test_files_are_those_of_the_library(visitor, models: Models, examples, tmp_path) -> None:
    answer = visitor.ask(visitor.choose(), examples[0].classes).json()
    result = models.segmenter("demo", "float32")(examples[0].image, examples[0].classes)
    confident = result.confident(0.4)
    files = {name: visitor.get(answer, f"file/{name}", min_score=0.4, opacity=0.5).content for name in drawing.FILES}
    picture = np.array(Image.open(io.BytesIO(files["overlay.png"])))
    np.testing.assert_array_equal(picture, confident.draw(opacity=0.5))
    confident.save_labels(tmp_path / "labels.png")
    assert files["labels.png"] == (tmp_path / "labels.png").read_bytes()
    assert json.loads(files["result.json"]) == json.loads(json.dumps(confident.to_json()))
    (tmp_path / "coco.json").write_bytes(files["coco.json"])
    coco = COCO(tmp_path / "coco.json")
    found = [one for one in result.instances() if one.score >= 0.4]
    assert len(coco.anns) == len(found) >= 3
    for annotation, instance in zip(coco.loadAnns(coco.getAnnIds()), found, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), instance.mask)
        assert coco.loadCats(annotation["category_id"])[0]["name"] == result.classes[instance.class_index]
    refused = visitor.get(answer, "file/passwd")
    assert refused.json()["error"].startswith("there is no file 'passwd': use one of overlay.png, ")
    overlay = visitor.get(answer, "file/overlay.png", view="instances", min_score=0.4).content
    assert Image.open(io.BytesIO(overlay)).size == (160, 120)


def test_two_answers_are_compared(visitor, examples) -> None:
    picture = visitor.choose()
    names = examples[0].classes
    answers = [visitor.ask(picture, each).json() for each in (names, names)]
    labels = [np.frombuffer(visitor.get(each, "hovered").content, "<i2", 120 * 160) for each in answers]
    assert np.array_equal(*labels)
    pair = {"one": answers[0]["answer"], "other": answers[1]["answer"]}
    assert visitor.client.get("/api/disagreement", params=pair).json()["share"] == 0
    different = visitor.ask(picture, "sand, grass").json()
    refused = visitor.client.get("/api/disagreement", params=pair | {"other": different["answer"]})
    assert refused.json()["error"] == "these answers are to different questions: ask again"


def test_disagreement_is_the_share_of_red_pixels(models: Models, examples) -> None:
    one = models.segmenter("demo", "float32")(examples[0].image, examples[0].classes)
    other = one.confident(0.0)
    other.labels[10:20, 30:50] = (other.labels[10:20, 30:50] + 1) % len(one.classes)
    picture, share = drawing.disagreement(one, other)
    assert share == 200 / one.labels.size
    red = (picture == (204, 0, 0)).all(axis=2)
    assert red[10:20, 30:50].all()
    assert red.sum() == 200


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("", "the vocabulary is empty: give at least one class name"),
        (" , ,", "the vocabulary is empty: give at least one class name"),
        ("@/etc/passwd", "the page reads no files and no JSON: write class names, separated by commas"),
        ('["cat"]', "the page reads no files and no JSON: write class names, separated by commas"),
        ('{"cat": "#fff"}', "the page reads no files and no JSON: write class names, separated by commas"),
        (", ".join(map(str, range(1001))), "there are 1001 class names, more than 1000: leave some out"),
        ("cat; dog", "the class name 'cat; dog' is quoted, or several names"),
        ("cat, cat", "the class name 'cat' appears twice, as numbers 1 and 2"),
    ],
)
def test_names_that_cannot_be_used(visitor, names: str, line: str) -> None:
    refused = visitor.ask(visitor.choose(), names)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(line)


def test_a_trailing_comma_is_no_name(visitor) -> None:
    assert visitor.ask(visitor.choose(), "cat, dog, ").json()["classes"] == ["cat", "dog"]


def test_a_name_with_a_path_reads_nothing(visitor) -> None:
    answer = visitor.ask(visitor.choose(), "/etc/passwd").json()
    assert answer["classes"] == ["/etc/passwd"]


def test_uploads(client, monkeypatch: pytest.MonkeyPatch) -> None:
    post = lambda body: client.post("/api/pictures", params={"page": "p", "name": "a.png"}, content=body)  # noqa: E731
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((30, 3 * LONGEST, 3), np.uint8)).save(buffer, "PNG")
    told = post(buffer.getvalue())
    assert (told.status_code, told.json()["width"], told.json()["height"]) == (200, LONGEST, 10)
    for body, line in (
        (b"", "'a.png' is empty (0 bytes); get an intact copy"),
        (b"<html>", "'a.png' is not an image that vocabseg can read"),
        (b"P6 20000 20000 255\n", "'a.png' has 20000 x 20000 pixels, more than the limit"),
    ):
        refused = post(body)
        assert refused.status_code == 400
        assert refused.json()["error"].startswith(line)
        assert "\n" not in refused.json()["error"]
    monkeypatch.setenv("VOCABSEG_MAX_PIXELS", "1000")
    assert "more than the limit of 0.001 megapixels" in post(buffer.getvalue()).json()["error"]
    monkeypatch.setattr(site, "UPLOAD_BYTES", 1000)
    too_large = "the picture has more than 0.001 MB: make it smaller"
    assert post(bytes(1001)).json()["error"] == too_large
    assert post(part for part in [bytes(600)] * 2).json()["error"] == too_large  # of unknown length


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"picture": 1}', b'{"picture":"","model":"","precision":"","names":"","more":1}']
)
def test_questions_that_cannot_be_read(client, body: bytes) -> None:
    refused = client.post("/api/answers", content=body)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("the question cannot be read: ")


def test_models_that_are_not_offered(visitor) -> None:
    refused = visitor.ask(visitor.choose(), "cat", precision="int3")
    assert refused.json()["error"] == "there is no model 'demo' in 'int3': choose another"


def test_what_is_no_longer_kept(visitor, client) -> None:
    picture = visitor.choose()
    answers = [visitor.ask(picture, f"cat, {name}").json() for name in ("sky", "sand", "grass", "wall", "dog")]
    gone = visitor.get(answers[0], "hovered")
    assert (gone.status_code, gone.json()["error"]) == (410, "this answer is no longer kept: ask again")
    assert visitor.get(answers[1], "hovered").status_code == 200
    for _ in range(4):
        visitor.choose(1)
    gone = visitor.ask(picture, "cat")
    assert (gone.status_code, gone.json()["error"]) == (410, "this picture is no longer kept: give it again")
    assert client.get("/api/answers/x.y/hovered").status_code == 410


def test_models_that_are_closed_are_let_go(models: Models, examples, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[Any]] = []
    genuine = Segmenter.__init__

    def noted(self: Segmenter, *how: Any) -> None:
        genuine(self, *how)
        opened.append(weakref.ref(self.stages))

    monkeypatch.setattr(Segmenter, "__init__", noted)
    names = [f"demo {number}" for number in range(OPEN + 1)]
    several = Site(Models(dict.fromkeys(names, models.bundles["demo"]), "cpu"), examples)
    visitor = Visitor(TestClient(several.application(), base_url="http://localhost"))
    picture = visitor.choose()
    answers = [visitor.ask(picture, "cat, sky", model=names[0]).json()]
    assert visitor.get(answers[0], "view", view="instances").status_code == 200  # what is drawn is kept
    answers += [visitor.ask(picture, "cat, sky", model=name).json() for name in names[1:]]
    gc.collect()
    assert [each() is not None for each in opened] == [False] + [True] * OPEN
    assert [visitor.get(each, "hovered").status_code for each in answers] == [410] + [200] * OPEN
    assert [visitor.ask(picture, "cat", model=names[place]).json()["reused"] for place in (1, 0)] == [True, False]


def test_a_fault_is_told_without_its_details(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(site.application(), base_url="http://127.0.0.1", raise_server_exceptions=False)
    visitor = Visitor(client)
    picture = visitor.choose()
    monkeypatch.setattr(Segmenter, "propose", lambda self, image: {}["secret"])
    told = visitor.ask(picture, "cat")
    assert (told.status_code, told.json()["error"]) == (500, "a fault in vocabseg (KeyError); the terminal says more")


def test_the_page_and_its_examples(client, examples) -> None:
    for path in PAGE:
        assert client.get(path).status_code == 200, path
    told = client.get("/api/start").json()
    assert told["models"] == [{"name": "demo", "precisions": told["models"][0]["precisions"]}]
    assert told["models"][0]["precisions"][0] == "float32"
    image = Image.open(io.BytesIO(client.get("/" + told["examples"][1]["address"]).content))
    np.testing.assert_array_equal(np.array(image), examples[1].image)
    assert client.get("/api/examples/9").status_code == 400


def test_the_page_names_no_other_host() -> None:
    for name in PAGE.values():
        text = (FOLDER / name).read_text(encoding="utf-8")
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", text))
        assert hosts <= {"www.w3.org"}, name  # the namespace of SVG


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:80", "192.168.1.7:9", "box.example:7860"])
def test_hosts_that_are_this_machine(site: Site, host: str) -> None:
    client = TestClient(site.application({"Box.example"}), base_url="http://localhost")
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil", "[", ""]
)
def test_hosts_by_foreign_names(client, host: str) -> None:
    for path in ("/", "/api/start", "/api/examples/0"):
        answer = client.get(path, headers={"Host": host})
        assert (answer.status_code, "not served as" in answer.json()["error"]) == (403, True)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:7861"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_pages_of_other_origins(client, headers: dict[str, str]) -> None:
    for ask in (
        lambda: client.get("/api/start", headers=headers),
        lambda: client.post("/api/pictures", headers=headers),
    ):
        answer = ask()
        assert answer.status_code == 403
        assert answer.json()["error"] == "a page of another origin asked: open the page itself"
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200


def test_hovering_is_packed(visitor, examples) -> None:
    answer = visitor.ask(visitor.choose(), examples[0].classes).json()
    packed = visitor.client.stream("GET", f"/api/answers/{answer['answer']}/hovered")
    with packed as response:
        assert response.headers["content-encoding"] == "gzip"
        assert len(gzip.decompress(b"".join(response.iter_raw()))) == 3 * 120 * 160
