"""Which files `vocabseg segment` reads and writes: originals stay, names are checked first, errors end nothing else."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vocabseg import load
from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.cli import main
from vocabseg.commands.options import vocabulary_of
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.segmenter.segmenter import Segmenter

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
QUIET = ("-q", "-c", "sky, water, grass")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a.png, b.png and sub/c.png; the working folder is the one above."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_scene(3, "test", number, size=(96, 120), objects=2).image).save(folder / name)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["segment", *map(str, arguments)])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def refused(run, monkeypatch: pytest.MonkeyPatch):
    """Run a command that must be refused, in one line, before the model is opened and anything is written."""

    def refused(*arguments: object) -> str:
        def open_segmenter(*given: object) -> None:
            raise AssertionError("the work has begun")

        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        with monkeypatch.context() as patched:
            patched.setattr(Segmenter, "__init__", open_segmenter)
            code, out, err = run(*arguments)
        assert code == 2, err
        assert (out, len(err.splitlines())) == ("", 1), err
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
        return err

    return refused


def test_the_folder_of_the_images_may_take_the_results(run, photos: Path) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    kinds = ("-w", "overlay", "-w", "json", "-w", "labels", "-w", "panoptic")
    code, out, err = run(photos / "a.png", photos / "b.png", "-o", f"{photos}/", *kinds, *QUIET)
    assert code == 0, err
    names = [f"{stem}{end}" for stem in "ab" for end in ("_segmented.png", "_segmented.json", "_labels.png",
                                                         "_panoptic.json")]  # fmt: skip
    assert out.split() == [str(photos / name) for name in names]
    assert all(Path(line).stat().st_size for line in out.split())
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("output", ["photos/a.png", "photos/../photos/a.png", "link.png", "linked/a.png"])
def test_an_image_is_never_replaced(refused, photos: Path, output: str) -> None:
    Path("link.png").symlink_to(photos / "a.png")
    Path("linked").symlink_to(photos)
    for image in ("photos/a.png", "link.png"):
        assert "would replace the input" in refused(image, "-o", output, *QUIET)


def test_no_other_input_is_replaced(run, refused, photos: Path) -> None:
    # the result of the first image would take the place of the second
    Image.open(photos / "b.png").save(photos / "a_segmented.png")
    images = (photos / "a.png", photos / "a_segmented.png")
    assert "would replace the input" in refused(*images, "-o", photos, *QUIET)
    assert "would replace the input" in refused(photos, "-o", photos, *QUIET)
    Path("names.json").write_text("sky\nwater\n")
    assert "names.json" in refused(images[0], "-c", "@names.json", "-w", "json", "-o", "names.json", "-q")
    for name in ("manifest.json", "tokenizer.json"):
        assert "would replace the input" in refused(images[0], "-w", "json", "-o", demo_folder() / name, *QUIET)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-o", "out.tif"], "suffixes .png"),
        (["-o", "result"], "suffixes .png"),
        (["-o", "-"], "suffixes .png"),
        (["-o", "out.jpg", "-w", "labels"], "name it .png"),
        (["-o", "out.png", "-w", "json"], "name it .json"),
        (["-o", "out.txt", "-w", "panoptic"], "name it .json"),
        (["-o", "missing/out.png"], "'{here}/missing' does not exist"),
        (["-o", "photos/a.png/"], "is not a folder"),
        (["-o", "photos/a.png/deeper/"], "is not a folder"),
        (["photos/b.png", "-o", "out.png"], "there are 2 images: name a folder"),
        (["photos/b.png", "-o", "photos/a.png"], "is not a folder"),
        (["photos/sub/../a.png", "-o", "new/"], "several results"),
    ],
)
def test_names_are_checked_before_the_work(refused, photos: Path, options: list[str], told: str) -> None:
    assert told.format(here=photos.parent) in refused("photos/a.png", *options, *QUIET)


def test_a_folder_is_made(run, photos: Path) -> None:
    assert run("photos/a.png", "-o", "new/deep/", *QUIET)[:2] == (0, "new/deep/a_segmented.png\n")
    assert run("photos/a.png", "photos/b.png", "-o", "other", "-w", "labels", *QUIET)[0] == 0
    assert sorted(path.name for path in Path("other").iterdir()) == ["a_labels.png", "b_labels.png"]
    code, _, err = run("photos/none.png", "-o", "third/", *QUIET)
    assert code == 2, err
    assert not Path("third").exists()


def test_one_bad_image_does_not_end_the_others(run, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    images = (photos / "bad.png", photos / "a.png", photos / "none.png", photos / "b.png")
    code, out, err = run(*images, "-o", "out", "-w", "labels", *QUIET)
    assert code == 3
    assert out.split() == ["out/a_labels.png", "out/b_labels.png"]
    lines = err.splitlines()
    assert [Path(line.split(": ")[1]).name for line in lines[:-1]] == ["bad.png", "none.png"]
    assert lines[-1] == "vocabseg: 2 of 4 images could not be segmented"
    for name in "ab":
        assert run(photos / f"{name}.png", "-o", "alone.png", "-w", "labels", *QUIET)[0] == 0
        both = [np.asarray(Image.open(path)) for path in ("alone.png", f"out/{name}_labels.png")]
        np.testing.assert_array_equal(*both)


def test_a_result_that_cannot_be_written_does_not_end_the_others(run, photos: Path, monkeypatch) -> None:
    from vocabseg.runtime.errors import OutputError
    from vocabseg.runtime.result.result import Result

    save = Result.save_json

    def full(result: Result, path: Path, info: object) -> None:
        if path.name.startswith("a"):
            raise OutputError("the disk is full")
        save(result, path)

    monkeypatch.setattr(Result, "save_json", full)
    code, out, err = run(photos / "a.png", photos / "b.png", "-o", "out", "-w", "json", *QUIET)
    assert (code, out) == (3, "out/b_segmented.json\n")
    assert "a.png: the disk is full" in err
    assert json.loads(Path("out/b_segmented.json").read_text())["image_size"] == [96, 120]


def test_folders_and_globs(run, photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    code, out, err = run("photos", "-o", "out", "-w", "labels", "-c", "sky, water")
    assert code == 0, err
    assert out.split() == ["out/a_labels.png", "out/b_labels.png", "out/sub/c_labels.png"]
    assert "Segmenting 3 images into 2 classes" in err
    assert "2 of 3 images, b.png" in err
    assert f"Left out of photos: 1 other file, such as {photos}/notes.txt" in err
    code, out, _ = run("photos/*.png", "-o", "photos/out", "-w", "labels", *QUIET)
    assert out.split() == ["photos/out/a_labels.png", "photos/out/b_labels.png"]
    again = run("photos", "-o", "photos/out", "-w", "labels", *QUIET)[1]
    assert len(again.split()) == 3, "results are no images of the folder that they are in"
    assert "no image found in 'photos/*.jpg'" in run("photos/*.jpg", *QUIET)[2]


def test_one_of_each_is_counted_as_one(run, photos: Path) -> None:
    _, _, err = run("photos/sub", "-c", "sky", "-o", "out/", "-w", "labels")
    assert "Segmenting c.png into 1 class with demo" in err


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
