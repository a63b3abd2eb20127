"""What `vocabseg segment` writes: panoptic results, low scores, what made the results, and what it does not know."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from vocabseg import load
from vocabseg.commands.options import vocabulary_of

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
QUIET = ("-q", "-c", "sky, water, grass")


def test_the_classes_of_a_data_set_go_by_its_name(run, photos: Path) -> None:
    for name, count, first, last in (
        ("ade20k-150", 150, "wall", "flag"),
        ("ade20k-847", 847, "wall", "adding machine, totalizer, totaliser"),
        ("coco-stuff-171", 171, "person", "wood"),
        ("coco-stuff-156", 156, "person", "wood"),
        ("voc-20", 20, "aeroplane", "tvmonitor"),
        ("pascal-context-59", 59, "aeroplane", "wood"),
        ("cityscapes-19", 19, "road", "bicycle"),
    ):
        classes = vocabulary_of(name).names
        assert (len(classes), classes[0], classes[-1]) == (count, first, last)
    assert run("photos/sub/c.png", "-c", "voc-20", "-o", "out.json", "-w", "json", "-q")[0] == 0
    assert json.loads(Path("out.json").read_text())["classes"] == list(vocabulary_of("voc-20").names)
    assert vocabulary_of("boeing-747").names == ("boeing-747",)


def test_results_say_what_they_are_of_and_what_made_them(run, photos: Path) -> None:
    kinds = ("-w", "json", "-w", "panoptic", "-w", "coco-panoptic")
    options = ("--set", "region.mask_threshold=0.4", "--things", "grass", "--template", "a drawing of a {}.")
    code, out, err = run("photos/a.png", "-o", "out/", *kinds, *options, *QUIET)
    assert code == 0, err
    names = ("a_segmented.json", "a_panoptic.json", "a_coco_panoptic.json", "a_coco_panoptic.png")
    assert out.split() == [f"out/{name}" for name in names]
    for name in names[:3]:
        info = json.loads(Path("out", name).read_text())["info"]
        assert info["file"] == "photos/a.png"
        assert info["model"] == "demo"
        assert info["engine"].endswith("-cpu-float32")
        assert info["vocabseg"] == version("vocabseg")
        assert info["settings"]["region"]["mask_threshold"] == 0.4
        assert info["templates"] == ["a drawing of a {}."]
    described = json.loads(Path("out/a_panoptic.json").read_text())
    assert {one["name"]: one["isthing"] for one in described["segments"]}.items() <= {
        "sky": False, "water": False, "grass": True
    }.items()  # fmt: skip
    assert described["segments"]


def test_a_file_with_ids_and_colours_synonyms_examples_and_other(run, photos: Path) -> None:
    Path("mine.csv").write_text("id,name,color,isthing\n40,grass|lawn,#00ff00,0\n7,water|sea,,0\n")
    kinds = ("-w", "json", "-w", "panoptic", "-w", "coco-panoptic", "-w", "labels")
    options = ("--classes", "@mine.csv", "--other", "-q")
    code, _, err = run("photos/a.png", "-o", "out/", *kinds, *options)
    assert (code, err) == (0, "")
    content = json.loads(Path("out/a_segmented.json").read_text())
    assert content["classes"] == ["grass", "water", "other"]
    assert content["info"]["vocabulary"]["names"] == ["grass|lawn", "water|sea"]
    assert content["segments"]
    assert {one["category_id"] for one in content["segments"]} <= {40, 7, 41}
    assert [one["id"] for one in json.loads(Path("out/a_coco_panoptic.json").read_text())["categories"]] == [40, 7]
    with Image.open("out/a_labels.png") as labels:
        assert labels.getpalette()[:3] == [0, 255, 0]
    example = ("--example", "mine=photos/b.png")
    assert run("photos/a.png", "-o", "x.json", "-w", "json", *example, *options)[0] == 0
    content = json.loads(Path("x.json").read_text())
    assert content["classes"] == ["grass", "water", "mine", "other"]
    assert [one["id"] for one in content["categories"]] == [40, 7, 41, 42]
    for arguments, told in (
        (("--example", "mine"), "--example 'mine': write NAME=IMAGE"),
        (("--example", "mine=no.png"), "the example of 'mine': no such image file: 'no.png'"),
        (("--contrast", "grass", "-c", "grass, sky"), "'grass' is a class name and a contrast name"),
        (("-c", "sky, other", "--other"), "'other' is that of the contrast class"),
    ):
        code, _, err = run("photos/a.png", "-o", "y.png", "-q", *arguments)
        assert code == 2
        assert told in err
        assert err.count("\n") == 1
    assert not Path("y.png").exists()
    before = Path("photos/b.png").read_bytes()
    code, _, err = run("photos/a.png", "-o", "photos/b.png", *example, *options)
    assert (code, "would replace the input 'photos/b.png'" in err) == (2, True)
    assert Path("photos/b.png").read_bytes() == before


def test_thresholds_decide_which_segments_there_are(run, photos: Path) -> None:
    def segments(*options: object) -> list[object]:
        assert run(SCENE, "-o", "p.json", "-w", "panoptic", "-q", *options)[0] == 0
        return json.loads(Path("p.json").read_text())["segments"]

    assert segments("--object-threshold", 1) == []
    assert len(segments("--object-threshold", 0, "--overlap-threshold", 0)) > len(segments())


def test_panoptic_options_are_checked(run, photos: Path) -> None:
    code, _, err = run("photos/a.png", "-w", "panoptic", "-o", "p.json", "--things", "sky, lawn", *QUIET)
    assert (code, err) == (2, "vocabseg: --things 'lawn' is none of the 3 classes: use their names\n")
    assert "go with --write panoptic" in run("photos/a.png", "--things", "sky", *QUIET)[2]
    assert (
        "'--object-threshold': Input should be less than"
        in run("photos/a.png", "-w", "panoptic", "-o", "p.json", "--object-threshold", 1.5, *QUIET)[2]
    )
    assert not Path("p.json").exists()
    err = run("photos/a.png", "-w", "panoptic", "-o", "p.json", "-c", "sky")[2]
    assert "Without --things every class is countable" in err


def test_pixels_with_a_low_score_get_no_class(run, photos: Path) -> None:
    def labels(*options: object) -> np.ndarray:
        assert run("photos/a.png", "photos/b.png", "-o", "out", "-w", "labels", *QUIET, *options)[0] == 0
        both = [np.asarray(Image.open(f"out/{name}_labels.png")) for name in "ab"]
        assert run("photos/a.png", "-o", "alone.png", "-w", "labels", *QUIET, *options)[0] == 0
        np.testing.assert_array_equal(np.asarray(Image.open("alone.png")), both[0])
        return both[0]

    scores = load()("photos/a.png", "sky, water, grass").scores
    usual, some = labels(), labels("--min-score", 0.9)
    assert 0 < np.count_nonzero(scores < 0.9) < scores.size
    np.testing.assert_array_equal(some, np.where(scores < 0.9, 255, usual))
    assert run("photos/a.png", "-o", "x.png", "--min-score", 2, *QUIET)[0] == 2


def test_the_demo_model_says_that_it_does_not_know_the_names(run, photos: Path) -> None:
    def told(names: str) -> bool:
        code, _, err = run("photos/a.png", "-o", "x.png", "-q", "-c", names)
        assert code == 0
        assert err == "" or (err.startswith("vocabseg: the built-in demo model knows") and len(err.splitlines()) == 1)
        return err != ""

    assert told("person, tree, dog")
    assert told("orange cat, sofa")
    assert not told("person, sky")
    assert not told("Cloudy Sky, dog")
    assert run("photos/a.png", "-o", "x.png", "-q")[2] == ""


def test_the_picture_has_the_style_that_is_asked_for(run, photos: Path) -> None:
    assert run("photos/a.png", "-o", "x.png", "--style", "outline", "--no-labels", *QUIET)[0] == 0
    result = load(engine="onnxruntime", device="cpu")("photos/a.png", ["sky", "water", "grass"])
    with Image.open("x.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), result.draw(style="outline", labels=False))
    code, _, err = run("photos/a.png", "-w", "json", "--style", "flat", *QUIET)
    assert (code, err) == (2, "vocabseg: --style and --no-labels go with --write overlay\n")
    assert "'filled'" in run("photos/a.png", "--style", "filled", *QUIET)[2]
