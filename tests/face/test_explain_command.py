"""`vocabseg explain`: tables and JSON that agree with the result, a page, and what is refused before any work."""

import json
import re
from pathlib import Path

import pytest

from vocabseg import load
from vocabseg.cli import main

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def explain(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["explain", *map(str, arguments), "--device", "cpu"])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return explain


def test_a_pixel_as_table_json_and_page(explain) -> None:
    found = load(device="cpu")(SCENE).explain(237, 140)
    code, out, err = explain(SCENE, "--at", "237,140", "--at", "5,5", "--masks", 2, "-q", "--html", "why.html")
    assert (code, err) == (0, "")
    assert out.startswith("Pixel 237,140 is 'orange arrow'. Scores: orange arrow 2.436, ")
    assert "Votes for 'orange arrow' (2.4358, not seen in training)" in out
    assert out.count("18 more") == 2
    best = found.votes[0]
    row = re.search(rf"^ {best.mask} +{best.weight:.4f} +{best.votes:.4f} +(.*)$", out, re.MULTILINE)
    assert row is not None
    sides = [f"orange arrow {side[0].value:.3f}" for side in (best.combined, best.query, best.clip)]
    assert re.findall(r"orange arrow \d\.\d{3}", row[1]) == sides
    assert "cloudy sky* 0.9" in out
    assert out.splitlines()[-1] == "why.html"
    assert Path("why.html").read_text(encoding="utf-8").count('"x":237,"y":140') == 1

    code, out, _ = explain(SCENE, "--at", "237,140", "--json", "--masks", 3, "--for", "water", "-q")
    content = json.loads(out)
    assert (content["file"], content["image_size"], content["model"]) == (str(SCENE), [360, 480], "demo")
    assert content["pixels"] == [
        json.loads(json.dumps(load(device="cpu")(SCENE).explain(237, 140, "water").to_json(3)))
    ]
    assert (content["pixels"][0]["label"], content["pixels"][0]["explained"]["name"]) == ("orange arrow", "water")


def test_synonyms_colours_examples_and_other_are_explained(explain) -> None:
    Path("mine.csv").write_text("name,color\nwater|lake,#0a0b0c\ncloudy sky,\n")
    options = ("-c", "@mine.csv", "--example", f"picture={SCENE}", "--contrast", "orange arrow, red star", "-q")
    code, out, err = explain(SCENE, "--at", "237,140", *options, "--json", "--html", "why.html")
    assert (code, err) == (0, "why.html\n")
    (pixel,) = json.loads(out)["pixels"]
    assert pixel["label"] == "other"
    assert {one["name"] for one in pixel["votes"][0]["query"]} == {"water", "cloudy sky", "picture", "other"}
    page = Path("why.html").read_text(encoding="utf-8")
    colours = dict(
        zip(*(json.loads(re.search(rf'"{key}":(\[.*?\])', page)[1]) for key in ("classes", "colours")), strict=True)
    )
    assert (colours["water"], colours["other"]) == ("#0a0b0c", "#808080")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to explain: give a pixel, such as --at 120,80, or a page, --html FILE"),
        (("--json", "--html", "a.html"), "--json tells of the pixels given with --at: give one, such as --at 120,80"),
        (("--at", "12"), "--at '12' is no pixel: give its column and row, such as --at 120,80"),
        (
            ("--at", "480,3"),
            "the pixel 480,3 is outside the image of 480 x 360 pixels: give x from 0 to 479 and y from",
        ),
        (("--at", "1,1", "--for", "cow"), "--for 'cow' is none of the 108 classes: use their names"),
        (("--at", "1,1", "--html", "a.png"), "cannot write a page to 'a.png': name it .html"),
        (("--at", "1,1", "--html", "no/a.html"), "cannot write 'no/a.html': the folder"),
    ],
)
def test_what_is_refused(explain, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = explain(SCENE, *arguments, "-q")
    assert (code, out) == (2, "")
    assert err.startswith(f"vocabseg: {message}")
    assert len(err.splitlines()) == 1
    assert not list(Path().glob("*.html"))
