"""Which files `vocabseg segment` reads and writes: originals stay, names are checked first, errors end nothing else."""

import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.runtime.segmenter.segmenter import Segmenter

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
QUIET = ("-q", "-c", "sky, water, grass")


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


def test_an_image_from_standard_input(run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    assert run("photos/a.png", "-o", "usual.png", "-w", "labels", *QUIET)[0] == 0
    given((photos / "a.png").read_bytes())
    assert run("-", "-o", "out.png", "-w", "labels", *QUIET)[:2] == (0, "out.png\n")
    assert Path("out.png").read_bytes() == Path("usual.png").read_bytes()
    given((photos / "a.png").read_bytes())
    assert run("-", *QUIET)[1] == "stdin_segmented.png\n"
    given(b"")
    assert "is empty (0 bytes)" in run("-", *QUIET)[2]


def test_images_behind_urls(run, photos: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(photos))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}"
        images = (f"{there}/a.png?size=1", f"{there}/none.png", f"{there}/b.png")
        code, out, err = run(*images, "-o", "out", "-w", "labels", "-w", "json", *QUIET)
        server.shutdown()
    assert code == 3
    assert out.split() == [f"out/{name}" for stem in "ab" for name in (f"{stem}_labels.png", f"{stem}_segmented.json")]
    assert f"cannot fetch '{there}/none.png': HTTP Error 404: File not found; check the address" in err
    assert json.loads(Path("out/a_segmented.json").read_text())["info"]["file"] == f"{there}/a.png?size=1"
    assert run("photos/a.png", "-o", "usual.png", "-w", "labels", *QUIET)[0] == 0
    assert Path("out/a_labels.png").read_bytes() == Path("usual.png").read_bytes()
