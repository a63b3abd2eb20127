"""Readers of the published data sets, on tiny sets written here in their layout."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vocabseg.benchmarks.datasets.dataset import Dataset, DatasetError
from vocabseg.benchmarks.datasets.registry import NAMES, describe, get_dataset

SIZE = (4, 6)


def put_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)


def put_labels(path: Path, values: list[int], dtype: type = np.uint8, palette: bool = False) -> None:
    """A label map whose first pixels are `values`; the last of them fills the rest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    filled = np.array(values + [values[-1]] * (SIZE[0] * SIZE[1] - len(values)), dtype).reshape(SIZE)
    picture = Image.fromarray(filled)
    if palette:
        picture.putpalette([index % 256 for index in range(768)])
    picture.save(path)


def first_labels(dataset: Dataset, count: int) -> list[int]:
    labels = dataset.labels(dataset.samples()[0])
    assert labels is not None
    assert labels.shape == SIZE
    return labels.ravel()[:count].tolist()


def write_coco_stuff(root: Path) -> None:
    for name in ("000000000139", "000000000285"):
        put_image(root / "coco" / "val2017" / f"{name}.jpg")
        put_labels(root / "coco" / "stuffthingmaps" / "val2017" / f"{name}.png", [0, 12, 181, 255, 20, 171, 11])


def write_voc(root: Path) -> None:
    for name in ("2007_000033", "2007_000042"):
        put_image(root / "VOC2012" / "JPEGImages" / f"{name}.jpg")
        put_labels(root / "VOC2012" / "SegmentationClassAug" / f"{name}.png", [0, 1, 16, 20, 255], palette=True)
    put_image(root / "VOC2012" / "JPEGImages" / "2007_000999.jpg")  # not in the list
    put_labels(root / "VOC2012" / "SegmentationClassAug" / "2007_000999.png", [1])
    (root / "VOC2012" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_000033\n2007_000042\n")


def write_ade_150(root: Path) -> None:
    for name in ("ADE_val_00000001", "ADE_val_00000002"):
        put_image(root / "ADEChallengeData2016" / "images" / "validation" / f"{name}.jpg")
        put_labels(root / "ADEChallengeData2016" / "annotations" / "validation" / f"{name}.png", [0, 1, 150, 13])


def write_ade_847(root: Path) -> None:
    for name in ("ADE_val_00000001", "ADE_val_00000002"):
        put_image(root / "ADE20K_2021_17_01" / "images_detectron2" / "validation" / f"{name}.jpg")
        path = root / "ADE20K_2021_17_01" / "annotations_detectron2" / "validation" / f"{name}.tif"
        put_labels(path, [0, 846, 65535, 300], np.uint16)


def write_pascal_context(root: Path) -> None:
    for name in ("2008_000002", "2008_000003"):
        put_image(root / "pcontext" / "val" / "image" / f"{name}.jpg")
        put_labels(root / "pcontext" / "val" / "label" / f"{name}.png", [0, 58, 255, 36])


def write_cityscapes(root: Path) -> None:
    for name in ("frankfurt_000000_000294", "frankfurt_000000_000576"):
        put_image(root / "cityscapes" / "leftImg8bit" / "val" / "frankfurt" / f"{name}_leftImg8bit.png")
        path = root / "cityscapes" / "gtFine" / "val" / "frankfurt" / f"{name}_gtFine_labelIds.png"
        put_labels(path, [7, 33, 0, 24, 18, 23])


def colours(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


CATEGORIES = [
    {"id": 184, "name": "tree-merged", "isthing": 0},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 18, "name": "dog", "isthing": 1},
]
IMAGES = [{"id": 139, "file_name": "000000000139.jpg", "height": SIZE[0], "width": SIZE[1]}]
TRIANGLE = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]]


def panoptic_ids() -> np.ndarray:
    ids = np.zeros(SIZE, np.int64)
    ids[:, 1:3], ids[:, 3:5], ids[0, 5] = 7, 70_000, 300
    return ids


def write_coco_panoptic(root: Path) -> None:
    put_image(root / "coco" / "val2017" / "000000000139.jpg")
    (root / "coco" / "annotations" / "panoptic_val2017").mkdir(parents=True)
    colours(panoptic_ids()).save(root / "coco" / "annotations" / "panoptic_val2017" / "000000000139.png")
    segments = [
        {"id": 7, "category_id": 184, "iscrowd": 0, "area": 8, "bbox": [1, 0, 2, 4]},
        {"id": 70_000, "category_id": 1, "iscrowd": 0, "area": 8, "bbox": [3, 0, 2, 4]},
        {"id": 300, "category_id": 1, "iscrowd": 1, "area": 1, "bbox": [5, 0, 1, 1]},
    ]
    entry = {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}
    data = {"info": {}, "licenses": [], "images": IMAGES, "annotations": [entry], "categories": CATEGORIES}
    (root / "coco" / "annotations" / "panoptic_val2017.json").write_text(json.dumps(data))


def write_coco_instances(root: Path) -> None:
    put_image(root / "coco" / "val2017" / "000000000139.jpg")
    (root / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
    runs = {"size": list(SIZE), "counts": [4, 4, 16]}  # column by column: the second column
    objects = [
        {"id": 1, "image_id": 139, "category_id": 18, "iscrowd": 0, "area": 14.5, "segmentation": TRIANGLE},
        {"id": 2, "image_id": 139, "category_id": 1, "iscrowd": 1, "area": 4, "segmentation": runs},
    ]
    categories = [{key: entry[key] for key in ("id", "name")} for entry in CATEGORIES if entry["isthing"]]
    data = {"images": IMAGES, "annotations": objects, "categories": categories}
    (root / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(data))


def write_world(root: Path) -> None:
    (root / "classes.json").write_text(
        json.dumps({"names": ["red square", "grass", "blue disc"], "seen": [True, True, False], "things": [0, 2]})
    )
    put_image(root / "images" / "val" / "0.png")
    put_labels(root / "annotations" / "val" / "0.png", [2, 1, 255, 0])


WRITERS: dict[str, Callable[[Path], None]] = {
    "coco-stuff-171": write_coco_stuff,
    "coco-stuff-156": write_coco_stuff,
    "voc-15": write_voc,
    "voc-20": write_voc,
    "ade20k-150": write_ade_150,
    "ade20k-847": write_ade_847,
    "pascal-context-59": write_pascal_context,
    "cityscapes-19": write_cityscapes,
    "coco-panoptic": write_coco_panoptic,
    "coco-instances": write_coco_instances,
    "world": write_world,
}
LABEL_MAPS = {
    # The values that a file holds, read as class indices; ids are category ids - 1 in COCO-Stuff.
    "coco-stuff-171": [0, 11, 170, 255, 19, 160, 255],
    "coco-stuff-156": [0, 11, 155, 255, 255, 255, 255],
    "voc-15": [255, 0, 15, 19, 255],
    "voc-20": [255, 0, 15, 19, 255],
    "ade20k-150": [255, 0, 149, 12],
    "ade20k-847": [0, 846, 65535, 300],
    "pascal-context-59": [0, 58, 255, 36],
    "cityscapes-19": [0, 18, 255, 11, 255, 10],
    "coco-panoptic": [255, 2, 2, 0, 0, 0],
    "world": [2, 1, 255, 0],
}
# Number of classes and some of the names with their places, from the sources that the readers name.
NAMES_AT = {
    "coco-stuff-171": (171, {0: "person", 79: "toothbrush", 80: "banner", 94: "clouds", 170: "wood"}),
    "coco-stuff-156": (156, {0: "person", 19: "elephant", 155: "wood"}),
    "voc-15": (20, {0: "aeroplane", 10: "diningtable", 15: "pottedplant", 19: "tvmonitor"}),
    "voc-20": (20, {14: "person", 17: "sofa"}),
    "ade20k-150": (150, {0: "wall", 6: "road, route", 8: "window", 12: "person", 149: "flag"}),
    "ade20k-847": (847, {0: "wall", 500: "cat", 846: "adding machine, totalizer, totaliser"}),
    "pascal-context-59": (59, {0: "aeroplane", 36: "person", 49: "diningtable", 58: "wood"}),
    "cityscapes-19": (19, {0: "road", 11: "person", 18: "bicycle"}),
    "coco-panoptic": (3, {0: "person", 1: "dog", 2: "tree-merged"}),
    "coco-instances": (2, {0: "person", 1: "dog"}),
    "world": (3, {1: "grass"}),
}


def test_every_name_is_tested() -> None:
    assert set(WRITERS) == set(NAMES) == set(NAMES_AT)


@pytest.mark.parametrize("name", NAMES)
def test_published_layout(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    dataset = get_dataset(name, tmp_path)
    count, names = NAMES_AT[name]
    assert dataset.name == name
    assert len(dataset.classes) == len(set(dataset.classes)) == count
    assert {index: dataset.classes[index] for index in names} == names
    samples = dataset.samples()
    assert len(dataset) == len(samples) == len({sample.image_id for sample in samples})
    assert list(dataset) == samples
    assert all(sample.image.is_file() for sample in samples)
    if name in LABEL_MAPS:
        assert first_labels(dataset, len(LABEL_MAPS[name])) == LABEL_MAPS[name]
    else:
        assert dataset.labels(samples[0]) is None
    for members in dataset.evaluation_sets.values():
        assert set(members) <= set(range(count))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_there_says_what_is_expected_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        get_dataset(name, tmp_path)
    message = str(caught.value)
    assert name in message
    assert str(tmp_path) in message
    assert "\n" not in message
    for line in describe(name).splitlines()[1:]:
        assert line.strip() in message
    with pytest.raises(DatasetError, match="no folder"):
        get_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"world"}))
def test_the_data_folder_may_be_the_data_set_itself(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    inner = next(tmp_path.iterdir())
    assert len(get_dataset(name, inner)) == len(get_dataset(name, tmp_path))


def test_coco_stuff_split(tmp_path: Path) -> None:
    write_coco_stuff(tmp_path)
    dataset = get_dataset("coco-stuff-171", tmp_path)
    sets = {name: [dataset.classes[index] for index in members] for name, members in dataset.evaluation_sets.items()}
    things = ["cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors"]
    stuff = ["cardboard", "clouds", "grass", "playingfield", "river", "road", "tree", "wall-concrete"]
    assert sets["novel_thing"] == things
    assert sets["novel_stuff"] == stuff
    assert len(sets["base"]) == 156
    assert dataset.seen is not None
    assert [name for name, seen in zip(dataset.classes, dataset.seen, strict=True) if not seen] == things + stuff
    assert dataset.things == frozenset(range(80))
    seen_only = get_dataset("coco-stuff-156", tmp_path)
    assert seen_only.classes == tuple(sets["base"])
    assert seen_only.seen == (True,) * 156
    assert len(seen_only.things) == 73


def test_voc_split(tmp_path: Path) -> None:
    write_voc(tmp_path)
    dataset = get_dataset("voc-15", tmp_path)
    assert dataset.evaluation_sets == {"base": tuple(range(15))}
    assert dataset.seen == (True,) * 15 + (False,) * 5
    assert get_dataset("voc-20", tmp_path).seen is None


@pytest.mark.parametrize(
    ("name", "folder", "published", "prepared", "values"),
    [
        ("coco-stuff-171", "coco", "stuffthingmaps", "stuffthingmaps_detectron2/val2017", [11, 170, 255]),
        ("voc-15", "VOC2012", "SegmentationClassAug", "annotations_detectron2/val", [0, 19, 255]),
        ("ade20k-150", "ADEChallengeData2016", "annotations", "annotations_detectron2/validation", [0, 149, 255]),
    ],
)
def test_prepared_label_maps(
    name: str, folder: str, published: str, prepared: str, values: list[int], tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    (tmp_path / folder / published).rename(tmp_path / "away")
    image = next((tmp_path / folder).rglob("*.jpg"))
    put_labels(tmp_path / folder / prepared / f"{image.stem}.png", values)
    assert first_labels(get_dataset(name, tmp_path), 3) == values


def test_ade20k_release(tmp_path: Path) -> None:
    folder = tmp_path / "ADE20K_2021_17_01" / "images" / "ADE" / "validation" / "home_or_hotel" / "bedroom"
    put_image(folder / "ADE_val_00000045.jpg")
    # Class number = red / 10 * 256 + green: 2978 is wall, 447 ceiling, 1 no class of the 847.
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for place, number in enumerate((2978, 447, 1)):
        pixels[0, place] = (number // 256 * 10, number % 256, 77)
    Image.fromarray(pixels).save(folder / "ADE_val_00000045_seg.png")
    dataset = get_dataset("ade20k-847", tmp_path)
    assert first_labels(dataset, 4) == [0, 6, 65535, 65535]


def test_coco_panoptic_segments(tmp_path: Path) -> None:
    write_coco_panoptic(tmp_path)
    dataset = get_dataset("coco-panoptic", tmp_path)
    truth = dataset.panoptic(dataset.samples()[0])
    assert truth is not None
    segmentation, segments = truth
    np.testing.assert_array_equal(segmentation, panoptic_ids())
    assert [(segment.id, segment.class_index, segment.crowd) for segment in segments] == [
        (7, 2, False),
        (70_000, 0, False),
        (300, 0, True),
    ]
    assert dataset.things == {0, 1}
    assert dataset.instances(dataset.samples()[0]) is None


def test_coco_objects(tmp_path: Path) -> None:
    from vocabseg.runtime.result.panoptic import rle_decode

    write_coco_instances(tmp_path)
    dataset = get_dataset("coco-instances", tmp_path)
    objects = dataset.instances(dataset.samples()[0])
    assert objects is not None
    assert [(entry.class_index, entry.area, entry.crowd) for entry in objects] == [(1, 14.5, False), (0, 4.0, True)]
    square, column = (rle_decode(entry.mask) for entry in objects)
    assert square[:, :4].all()
    assert not square[:, 4:].any()
    assert column[:, 1].all()
    assert column.sum() == 4


def test_world_annotations(tmp_path: Path) -> None:
    write_world(tmp_path)
    dataset = get_dataset("world", tmp_path)
    assert dataset.evaluation_sets == {"base": (0, 1)}
    assert dataset.things == {0, 2}
    assert dataset.panoptic(dataset.samples()[0]) is None
    put_image(tmp_path / "images" / "test" / "1.jpg")
    put_labels(tmp_path / "annotations" / "test" / "1.png", [1])
    assert [sample.image_id for sample in get_dataset("world", tmp_path, "test")] == ["1"]
    (tmp_path / "annotations" / "val").rename(tmp_path / "annotations" / "train")
    with pytest.raises(DatasetError, match="test, train"):
        get_dataset("world", tmp_path)
    (tmp_path / "classes.json").write_text('{"names": ["a"], "seen": [true, false]}')
    with pytest.raises(DatasetError, match="1 names and 2 seen flags"):
        get_dataset("world", tmp_path, "test")


def test_damage_is_told(tmp_path: Path) -> None:
    write_coco_stuff(tmp_path)
    dataset = get_dataset("coco-stuff-171", tmp_path)
    first, second = dataset.samples()
    labels = tmp_path / "coco" / "stuffthingmaps" / "val2017"
    (labels / f"{first.image_id}.png").write_bytes(b"not a picture")
    put_image(labels / f"{second.image_id}.png")
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.labels(first)
    with pytest.raises(DatasetError, match="3 channels"):
        dataset.labels(second)
    first.image.unlink()
    with pytest.raises(DatasetError, match=f"{first.image_id}.jpg is missing"):
        get_dataset("coco-stuff-171", tmp_path)
    write_coco_instances(tmp_path)
    (tmp_path / "coco" / "annotations" / "instances_val2017.json").write_text('{"images": 3}')
    with pytest.raises(DatasetError, match="no instance annotation file"):
        get_dataset("coco-instances", tmp_path)


def test_unknown_names_get_suggestions(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="ade20k-150"):
        get_dataset("ade20k150", tmp_path)
    with pytest.raises(DatasetError, match=r"voc-(15|20) or voc-(15|20)"):
        get_dataset("voc", tmp_path)
    with pytest.raises(DatasetError, match="cityscapes-19"):
        describe("zzzz")
    with pytest.raises(DatasetError, match="no split 'test'"):
        get_dataset("voc-20", tmp_path, "test")
