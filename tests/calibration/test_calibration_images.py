"""Which images a calibration takes, and what it says about those that it cannot use."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.samples.calibration_images import FEWEST, HELD, choose_images, identity, trial_scenes
from vocabseg.calibration.samples.feeds import text_feed
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.text.vocabulary import Vocabulary


def fill(folder: Path, count: int, start: int = 0) -> Path:
    (folder / "deeper").mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 9, 3), np.uint8)
        place = folder / "deeper" if index % 2 else folder
        assert cv2.imwrite(str(place / f"{index:03d}.png"), pixels)
    return folder


def refused(folder: Path | None, count: int = FEWEST) -> str:
    with pytest.raises(CalibrationError) as caught:
        choose_images(folder, count, 0, lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_choice_is_seeded(tmp_path: Path) -> None:
    folder = fill(tmp_path, 60)
    first, held = choose_images(folder, 32, 0, print)
    again, _ = choose_images(folder, 32, 0, print)
    other, _ = choose_images(folder, 32, 1, print)
    assert identity(first) == identity(again) != identity(other)
    assert (len(first), len(held)) == (32, HELD)
    assert not {one.name for one in first} & {one.name for one in held}
    assert {len(Path(one.name).parts) for one in first} == {1, 2}


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    assert "holds no image" in refused(tmp_path)
    fill(tmp_path, 3)
    assert "holds 3 images: a calibration needs at least 32" in refused(tmp_path)
    assert "32 to 512" in refused(tmp_path, 1)


def test_a_broken_image_is_left_out_and_told(tmp_path: Path) -> None:
    folder = fill(tmp_path, 33)
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    told: list[str] = []
    images, held = choose_images(folder, 32, 0, told.append)
    assert len(images) == 32
    assert len(held) == 1
    assert "broken.png" not in {one.name for one in (*images, *held)}
    assert any("left out" in line and "broken.png" in line for line in told)


def test_few_images_are_compared_on_those_that_are_there(tmp_path: Path) -> None:
    told: list[str] = []
    images, held = choose_images(fill(tmp_path, 36), 64, 0, told.append)
    assert (len(images), len(held)) == (32, 4)
    assert "36 images" in told[0]
    (tmp_path / "032.png").unlink()
    images, held = choose_images(fill(tmp_path, 32), 32, 0, told.append)
    assert len(images) == 32
    assert held


def test_scenes_are_never_of_the_test_split(tmp_path: Path) -> None:
    images, held = choose_images(None, 32, 0, print)
    names = [one.name for one in (*images, *held)]
    assert len(set(names)) == 32 + HELD
    assert all("-val-" in name for name in names)
    tried = [path.stem for path in trial_scenes(tmp_path, 3, print).rglob("images/**/*.png")]
    assert len(tried) == 3
    assert all(name.startswith("val-") and not name.startswith("val-0-") for name in tried)


def test_a_vocabulary_of_images_alone_feeds_text_encoders_its_labels() -> None:
    bundle, image = open_bundle(None), np.full((32, 48, 3), 90, np.uint8)
    fed = text_feed(bundle, "text_encoder", Vocabulary.from_images({"red logo": [image]}))
    named = text_feed(bundle, "text_encoder", Vocabulary(["red logo"]))
    np.testing.assert_array_equal(fed["token_ids"], named["token_ids"])
