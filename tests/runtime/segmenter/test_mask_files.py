"""Masks from files: every format gives the same masks, images find theirs by name, and what does not fit is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.result.panoptic import rle_encode
from vocabseg.runtime.segmenter import mask_files
from vocabseg.runtime.segmenter.mask_files import MaskFiles

SIZE = (20, 30)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Two rectangles, so that polygons give them exactly."""
    made = np.zeros((2, *SIZE), bool)
    made[0, 3:12, 5:20] = made[1, 10:20, 0:30] = True
    return made


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(SIZE), "counts": [0, *counts] if flat[0] else counts}


def polygon(mask: np.ndarray) -> list[list[int]]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return [[int(value) for value in (left, top, right, top, right, bottom, left, bottom)]]


def write_pngs(folder: Path, masks: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}.png")
    return folder


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_every_form_gives_the_same_masks(tmp_path: Path, masks: np.ndarray) -> None:
    forms = [rle_encode, uncompressed, polygon]
    (decoded,) = (coco.decode(coco.frPyObjects(uncompressed(mask), *SIZE)) for mask in masks[:1])
    np.testing.assert_array_equal(decoded.astype(bool), masks[0])  # the tests' own encoding is right
    files = [write_pngs(tmp_path / "pngs", masks)]
    for name, arrays in (
        ("bool", {"masks": masks}), ("bytes", {"anything": masks.astype(np.uint8) * 255}), ("ones", {"x": masks * 1.0})
    ):  # fmt: skip
        files.append(tmp_path / f"{name}.npz")
        np.savez(files[-1], **arrays)
    np.save(tmp_path / "plain.npy", masks)
    files.append(tmp_path / "plain.npy")
    for number, form in enumerate(forms):
        entries = [{"segmentation": form(mask), "area": int(mask.sum()), "predicted_iou": 0.9} for mask in masks]
        named = [{**entry, "image_id": 7, "category_id": 1, "id": place} for place, entry in enumerate(entries)]
        image = {"id": 7, "file_name": "folder/x.jpg", "height": SIZE[0], "width": SIZE[1]}
        others = [{"segmentation": form(masks[1]), "image_id": 8}]
        other = {"id": 8, "file_name": "y.jpg", "height": SIZE[0], "width": SIZE[1]}
        files += [
            write(tmp_path / f"sam{number}.json", entries),
            write(tmp_path / f"sa1b{number}.json", {"image": {"image_id": 3}, "annotations": entries}),
            write(tmp_path / f"results{number}.json", named),
            write(tmp_path / f"coco{number}.json", {"images": [image, other], "annotations": named + others}),
        ]
    for file in files:
        found = MaskFiles(file).of("x.jpg", SIZE)
        np.testing.assert_array_equal(found, masks, err_msg=file.name)
    assert len(files) == 17


def test_several_images_find_theirs_by_name(tmp_path: Path, masks: np.ndarray) -> None:
    other = masks[:1, ::-1]
    folder = tmp_path / "folder"
    write_pngs(folder / "x", masks)
    np.savez(folder / "y.npz", masks=other)
    np.savez(tmp_path / "both.npz", x=masks, y=other)
    entries = [{"image_id": 139, "segmentation": rle_encode(mask)} for mask in masks]
    results = write(tmp_path / "r.json", [*entries, {"image_id": "y", "segmentation": rle_encode(other[0])}])
    for source, name in ((folder, "x.jpg"), (tmp_path / "both.npz", "x.png"), (results, "000000000139.jpg")):
        np.testing.assert_array_equal(MaskFiles(source, alone=False).of(name, SIZE), masks)
        np.testing.assert_array_equal(MaskFiles(source, alone=False).of("y.png", SIZE), other)
        with pytest.raises(ImageError, match=r"'z(\.jpg)?'"):
            MaskFiles(source, alone=False).of("z.jpg", SIZE)
    sam = write(tmp_path / "sam.json", [{"segmentation": rle_encode(masks[0])}])
    with pytest.raises(ImageError, match="does not say which image"):
        MaskFiles(sam, alone=False).of("x.jpg", SIZE)


def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path, masks: np.ndarray, monkeypatch) -> None:
    def refused(path: Path, size: tuple[int, int] = SIZE) -> str:
        with pytest.raises(ImageError) as caught:
            MaskFiles(path).of("x.jpg", size)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def saved(array: np.ndarray) -> Path:
        np.savez(tmp_path / "a.npz", masks=array)
        return tmp_path / "a.npz"

    assert "no such file" in refused(tmp_path / "none.npz")
    assert "give a .npz" in refused(write(tmp_path / "masks.txt", []))
    assert "2 x 20 x 30, where N x 30 x 20 are due" in refused(saved(masks), (30, 20))
    assert "are 20 x 30, where N x 20 x 30" in refused(saved(masks[0]))
    assert "are 0 x 20 x 30" in refused(saved(masks[:0]))
    assert "dtype int64" in refused(saved(masks.astype(np.int64)))
    assert "cannot be read" in refused(saved(np.array([masks, None], object)))
    (tmp_path / "b.npz").write_bytes(saved(masks).read_bytes()[:200])
    assert "cannot be read" in refused(tmp_path / "b.npz")
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY")
    assert "cannot be read" in refused(tmp_path / "c.npy")
    np.savez_compressed(tmp_path / "z.npz", masks=masks)
    whole = bytearray((tmp_path / "z.npz").read_bytes())
    start = 30 + whole[26] + whole[28]  # behind the header, the name and the extra field
    (tmp_path / "z.npz").write_bytes(whole[:start] + b"\x07" + whole[start + 1 :])
    assert "cannot be read (Error -3 while decompressing data: invalid block type" in refused(tmp_path / "z.npz")
    whole[6] |= 1
    whole[whole.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "z.npz").write_bytes(whole)
    assert "is encrypted" in refused(tmp_path / "z.npz")
    monkeypatch.setattr(mask_files, "LARGEST_FILE", 1000)
    assert refused(tmp_path / "z.npz").endswith("unpacks to more than 0 GiB: give fewer masks")
    monkeypatch.undo()
    np.savez(tmp_path / "d.npz", one=masks, two=masks)
    assert "'one', 'two'" in refused(tmp_path / "d.npz")
    assert "0.png' is 20 x 30 pixels" in refused(write_pngs(tmp_path / "pngs", masks), (21, 30))
    (tmp_path / "empty").mkdir()
    assert "no masks of 'x'" in refused(tmp_path / "empty")
    assert "holds no mask of 'x.jpg'" in refused(write(tmp_path / "e.json", []))
    assert "COCO's or SAM's kind" in refused(write(tmp_path / "f.json", {"masks": []}))
    assert "run lengths do not fill" in refused(
        write(tmp_path / "g.json", [{"segmentation": rle_encode(masks[0])}]), (30, 20)
    )
    assert "polygon of 4 numbers" in refused(write(tmp_path / "h.json", [{"segmentation": [[0, 0, 5, 5]]}]))
    image = {"id": 1, "file_name": "x.jpg", "height": 30, "width": 20}
    annotation = {"image_id": 1, "segmentation": polygon(masks[0])}
    assert "says that 'x.jpg' is 30 x 20" in refused(
        write(tmp_path / "i.json", {"images": [image], "annotations": [annotation]})
    )
    monkeypatch.setattr(mask_files, "MOST_MASK_PIXELS", 1000)
    assert "2 masks of 20 x 30 pixels are too many" in refused(saved(masks))
