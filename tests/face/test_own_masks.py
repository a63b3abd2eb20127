"""`vocabseg segment --masks`, and what a bundle without a proposal network can and cannot do."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import vocabseg
from tests.bundles import copy_bundle_with
from tests.runtime.segmenter.test_cuda_stages import emulated
from vocabseg.cli import main
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.images import load_image

NAMES = "red circle, green square, brick wall"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model without its proposal network."""
    folder = tmp_path_factory.mktemp("given")
    graphs = dict(open_bundle(demo_folder(), verify=False).manifest.graphs)
    del graphs["proposal"]
    ensemble = msgspec.structs.replace(open_bundle(demo_folder(), verify=False).manifest.ensemble, enabled=False)
    return copy_bundle_with(demo_folder(), folder / "bundle", graphs=graphs, masks="given", ensemble=ensemble)


def halves(photo: Path) -> np.ndarray:
    masks = np.zeros((2, *load_image(photo).shape[:2]), bool)
    masks[0, 10:60, :50] = masks[1, 20:, 60:] = True
    return masks


def test_masks_of_ones_own(run, photos: Path, given: Path) -> None:
    names = [photos / "a.png", photos / "b.png"]
    for photo in names:
        folder = Path("masks") / photo.stem
        folder.mkdir(parents=True)
        for number, mask in enumerate(halves(photo)):
            Image.fromarray(mask.astype(np.uint8)).save(folder / f"{number}.png")
    Path("masks/b/0.png").write_bytes(b"no picture")
    code, out, err = run(*names, "--masks", "masks", "-b", given, "-c", NAMES, "-w", "labels", "-o", "out/", "-q")
    assert code == 3
    assert "'masks/b/0.png' is not an image" in err
    assert out.split() == ["out/a_labels.png"]
    masks = halves(names[0])
    found = np.array(Image.open("out/a_labels.png"))
    labels = vocabseg.load(given).regions(names[0], masks).classify(NAMES).labels
    np.testing.assert_array_equal(labels == -1, ~masks.any(0))  # what no mask covers has no class
    np.testing.assert_array_equal(found == 255, labels == -1)
    np.testing.assert_array_equal(found[labels >= 0], labels[labels >= 0])
    with emulated(given) as on_gpu:
        np.testing.assert_array_equal(on_gpu.regions(names[0], masks).classify(NAMES).labels, labels)
    # The same with a bundle that would find masks itself, for one image.
    code, _, err = run(
        names[0], "--masks", "masks/a", "-c", NAMES, "-w", "labels", "-o", "one.png", "-q", "--set", "ensemble.weight=0"
    )
    assert code == 0, err
    np.testing.assert_array_equal(np.array(Image.open("one.png")), found)


def test_masks_that_cannot_be_used_are_told_before_the_work(run, photos: Path, given: Path) -> None:
    Path("sam.json").write_text(json.dumps([]))
    Path("photos/other").mkdir()
    (photos / "a.png").rename(photos / "other" / "b.jpg")
    for arguments, told in (
        (["photos/b.png", "--masks", "sam.json"], "'sam.json' holds no mask of 'b.png'"),
        (["photos/b.png", "--masks", "nothing"], "there are no masks at 'nothing'"),
        (["photos", "--masks", "photos", "-o", "out/"], "would share their masks"),
        (["photos/b.png", "--masks", "photos", "-o", "photos/b.png"], "would replace the input"),
        (["photos/b.png"], "has no proposal network, so masks must be given"),
        (["photos/b.png", "photos/sub/c.png", "-o", "out/"], "has no proposal network, so masks must be given"),
    ):
        code, out, err = run(*arguments, "-b", given, "-c", NAMES, "-q")
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert told in err


@pytest.mark.parametrize("verb", ["batch", "bench", "evaluate", "serve", "triton", "calibrate"])
def test_verbs_that_need_proposals_say_so(
    verb: str, given: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(32) if verb == "calibrate" else ():
        Image.new("RGB", (8, 8)).save(photos / f"{number}.png")
    more = {
        "evaluate": ["--dataset", "world"],
        "batch": ["photos", "-c", "a", "-o", "out", "-b"],
        "calibrate": ["--count", "32", "--images", "photos"],
    }
    with pytest.raises(SystemExit) as stop:
        main([verb, *more.get(verb, []), str(given)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert (stop.value.code, "has no proposal network, so masks must be given" in last) == (2, True), last


def test_python_says_so_too(given: Path, photos: Path) -> None:
    segmenter = vocabseg.load(given)
    for ask in (
        lambda: segmenter.propose(photos / "a.png"),
        lambda: segmenter(photos / "a.png", ["a"]),
        lambda: next(segmenter.segment_many([photos / "a.png"], ["a"], on_error="skip")),
    ):
        with pytest.raises(vocabseg.VocabsegError, match="has no proposal network"):
            ask()
