"""Data sets of strangers: damaged or hostile annotations and label maps are left out or told of, in bounded time."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vocabseg.benchmarks.datasets.coco_files import (
    InstancesFile,
    InstanceTruth,
    PanopticFile,
    PanopticTruth,
    inside,
    read_annotations,
)
from vocabseg.benchmarks.datasets.dataset import DatasetError
from vocabseg.benchmarks.datasets.label_maps import read_label_map
from vocabseg.benchmarks.datasets.registry import get_dataset
from vocabseg.benchmarks.scenes import files as scene_files
from vocabseg.benchmarks.scenes.files import rendered_world
from vocabseg.runtime.result.run_lengths import compressed, decode_counts

SIZE = (4, 6)
SQUARE = [0, 0, 5, 0, 5, 3, 0, 3]
DEEP = "[" * 100_000


def instances(folder: Path, **entry: Any) -> InstanceTruth:
    return InstanceTruth(read_annotations(write(folder, **entry), InstancesFile), {1: 0})


def write(folder: Path, **entry: Any) -> Path:
    entry = {"image_id": 1, "category_id": 1, "segmentation": [SQUARE]} | entry
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [entry],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(document))
    return path


MASKS = [
    {"size": SIZE, "counts": [3, 4]},  # pycocotools would read beyond the end
    {"size": SIZE, "counts": [24, 10**9]},
    {"size": SIZE, "counts": []},
    {"size": SIZE, "counts": [-1, 25]},
    {"size": SIZE, "counts": [2**70]},
    {"size": SIZE, "counts": ""},
    {"size": SIZE, "counts": "\x01"},
    {"size": SIZE, "counts": "o"},  # goes on, and ends
    {"size": SIZE, "counts": "oooooooooooooo0"},
    {"size": SIZE, "counts": "ä"},
    {"size": SIZE, "counts": "11"},
    {"size": [10**9, 10**9], "counts": "11"},
    {"size": [6, 4], "counts": [24]},
    {"size": SIZE},
    {"counts": [24]},
    {},
    [],
    [[]],
    [[0, 0, 1, 1]],
    [[0, 0, 1, 1, 2, 2, 3]],
    [[0, 0, 1e9, 0, 1e9, 1e9]],
    [[1e300, 0, 1, 0, 1, 1]],
    [[0, 0, 60000, 0] * 1000],
    "x",
    None,
]


@pytest.mark.parametrize("segmentation", MASKS, ids=[str(mask)[:40] for mask in MASKS])
def test_masks_that_are_none_are_told(tmp_path: Path, segmentation: Any) -> None:
    with pytest.raises(DatasetError) as caught:
        instances(tmp_path, segmentation=segmentation)("1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entry", [{"category_id": 2}, {"category_id": 10**30}, {"area": -1}, {"area": 1e300}, {"image_id": 10**30}]
)
def test_objects_of_no_category_or_size_are_told(tmp_path: Path, entry: dict[str, Any]) -> None:
    with pytest.raises(DatasetError):
        instances(tmp_path, **entry)("1")


def test_right_masks_are_taken_in_all_three_forms(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        h, w = (int(side) for side in generator.integers(1, 40, 2))
        mask = (generator.random((h, w)) < generator.random()).astype(np.uint8)
        encoded = coco_mask.encode(np.asfortranarray(mask))
        text = encoded["counts"].decode()
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
        runs = runs if not flat[0] else np.concatenate([[0], runs])
        np.testing.assert_array_equal(decode_counts(text), runs)
        for counts in (text, runs.tolist()):
            truth = InstanceTruth(
                read_annotations(_sized(tmp_path, h, w, {"size": [h, w], "counts": counts}), InstancesFile), {1: 0}
            )
            (found,) = truth("1")
            assert found.mask == {"size": [h, w], "counts": text}
            assert found.area == mask.sum()
    assert instances(tmp_path)("1")[0].area == 15


def _sized(folder: Path, h: int, w: int, segmentation: Any) -> Path:
    path = write(folder, segmentation=segmentation)
    document = json.loads(path.read_text())
    document["images"][0] |= {"height": h, "width": w}
    path.write_text(json.dumps(document))
    return path


def test_a_polygon_at_the_limit_of_a_large_image_is_taken() -> None:
    assert compressed([[0, 0, 20000, 0, 20000, 20000, 0, 20000]], (20000, 20000))["size"] == [20000, 20000]


@pytest.mark.parametrize("text", [DEEP, '{"images": ' + DEEP, "", "[]", "\ud800"])
def test_a_file_that_holds_no_annotations_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for kind in (PanopticFile, InstancesFile):
        with pytest.raises(DatasetError):
            read_annotations(path, kind)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="pipe"):
        read_annotations(path, PanopticFile)


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "a/../../b", "", ".", "a\0b", "\x1b[2J"])
def test_annotations_name_files_of_their_own_folder_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError):
        inside(tmp_path, name)
    document = {
        "images": [],
        "categories": [],
        "annotations": [{"image_id": 1, "file_name": name, "segments_info": []}],
    }
    (tmp_path / "p.json").write_text(json.dumps(document))
    truth = PanopticTruth(read_annotations(tmp_path / "p.json", PanopticFile), tmp_path / "p", {})
    with pytest.raises(DatasetError):
        truth("1")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
EMF = struct.pack("<II4i4iI", 1, 88, 0, 0, 10, 10, 0, 0, 10, 10, 0x464D4520) + b"\0" * 60
DDS = b"DDS " + struct.pack("<I", 124) + b"\xff" * 120


@pytest.mark.parametrize("content", [EPS, EMF, DDS, b"", b"\x89PNG\r\n\x1a\n", b"BM" + b"\xff" * 60, b"P6 1 1 255 "])
def test_label_maps_of_other_formats_are_not_opened(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "labels.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError):
        read_label_map(path)


def test_label_maps_hold_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.tif"
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    with pytest.raises(DatasetError, match="whole numbers"):
        read_label_map(path)
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "bits.png"), np.eye(4))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="no file"):
        read_label_map(path)


@pytest.mark.parametrize(
    "classes", [DEEP, "{}", '{"names": []}', '{"names": ["a"], "things": [7]}', json.dumps({"names": ["a"] * 300})]
)
def test_classes_that_do_not_fit_a_label_map_are_told(tmp_path: Path, classes: str) -> None:
    (tmp_path / "annotations" / "val").mkdir(parents=True)
    (tmp_path / "classes.json").write_text(classes)
    with pytest.raises(DatasetError, match=r"classes\.json"):
        get_dataset("world", tmp_path)


def test_a_damaged_world_in_the_cache_is_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path))
    folder = rendered_world(2)
    labels = sorted((folder / "annotations").rglob("*.png"))
    right = [path.read_bytes() for path in labels]
    stamps = [path.stat().st_mtime_ns for path in labels]
    assert rendered_world(2) == folder
    assert [path.stat().st_mtime_ns for path in labels] == stamps
    damages = (
        lambda: Image.fromarray(np.roll(np.array(Image.open(labels[0])), 8, axis=1)).save(labels[0]),
        labels[1].unlink,
        (folder / scene_files.DIGESTS).unlink,
        lambda: (labels[0].parent / "more.png").write_bytes(right[0]),
    )
    for damage in damages:
        damage()
        assert rendered_world(2) == folder
        assert [path.read_bytes() for path in labels] == right
        assert not (labels[0].parent / "more.png").exists()
