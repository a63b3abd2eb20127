"""Folders, globs, lists, tars -> items; and what is told of inputs that cannot be used."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from vocabseg.batch.inputs.find import find_items
from vocabseg.batch.inputs.items import InputError, Item

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'vocabseg[batch]'")


def ids(*inputs: object, column: str | None = None, id_column: str | None = None) -> list[str]:
    return [item.id for item in find_items([str(given) for given in inputs], column, id_column)]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(path.name))


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def test_folders_are_searched_at_any_depth_in_a_fixed_order(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.JPG", "a.png", "c/d/e.webp", "c/notes.txt", ".git/x.png", "c/.hidden.png")))
    assert ids(tmp_path) == ["a.png", "b.JPG", "c/d/e.webp"]
    (item, *_) = find_items([str(tmp_path)], None, None)
    assert item == Item("a.png", str(tmp_path / "a.png"))
    assert item.read() == b"a.png"


def test_globs_are_relative_to_what_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(*(tmp_path / name for name in ("x/1.png", "x/y/2.jpg", "x/y/3.txt", "z/4.png")))
    assert ids(tmp_path / "x" / "**" / "*.*") == ["1.png", "y/2.jpg"]
    monkeypatch.chdir(tmp_path)
    assert ids("*/*.png") == ["x/1.png", "z/4.png"]
    touch(tmp_path / "a[1].png")  # a file with that very name, not a pattern
    assert ids("a[1].png") == ["a[1].png"]


def test_lists(tmp_path: Path) -> None:
    csv = tmp_path / "list.csv"
    csv.write_text('﻿path,id,split\r\nphotos/0017.png,0017,a\r\n"with, comma.png",18,b\r\n/abs/x.png,19,b\r\n')
    items = list(find_items([str(csv)], None, None))
    assert [item.id for item in items] == ["0017", "18", "19"]  # no number was made of 0017
    assert [item.path for item in items] == [
        str(tmp_path / "photos" / "0017.png"),
        str(tmp_path / "with, comma.png"),
        "/abs/x.png",
    ]
    assert ids(csv, id_column="path") == ["photos/0017.png", "with, comma.png", "/abs/x.png"]
    from pyarrow import parquet

    table = pyarrow.table({"picture": ["p.png", "q.png"], "key": [1, 2]})
    parquet.write_table(table, tmp_path / "list.parquet")
    assert ids(tmp_path / "list.parquet", column="picture", id_column="key") == ["1", "2"]
    assert ids(tmp_path / "list.parquet", column="picture") == ["p.png", "q.png"]
    (tmp_path / "one.csv").write_text("anything\na.png\n")
    assert ids(tmp_path / "one.csv") == ["a.png"]


def test_tars_give_their_images_without_being_unpacked(tmp_path: Path) -> None:
    members = {
        "c/0.jpg": b"zero",
        "c/0.json": b"{}",
        "c/0.seg.png": b"a mask",
        "c/" + "long" * 60 + ".png": b"one",  # needs a header of its own
        "./2.PNG": b"two" * 1000,
    }
    path = write_tar(tmp_path / "part-000.tar", members)
    items = list(find_items([str(path)], None, None))
    assert [item.id for item in items] == [
        "part-000.tar/c/0.jpg",
        "part-000.tar/c/" + "long" * 60 + ".png",
        "part-000.tar/./2.PNG",
    ]
    assert [item.read() for item in items] == [b"zero", b"one", b"two" * 1000]


def left_out(*inputs: object, output: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """The ids of the images, and what is left out with the reasons."""
    others: dict[str, str] = {}
    items = find_items([str(given) for given in inputs], None, None, others.__setitem__, output)
    return [item.id for item in items], others


def test_a_list_of_one_column_needs_no_header(tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    for text in ("a.png\nb.png\n", "\ufeffa.png\r\n\r\nb.png\r\n", '"a.png"\n"b.png"'):
        listed.write_bytes(text.encode())
        assert ids(listed) == ["a.png", "b.png"]
    touch(tmp_path / "no-ending")
    listed.write_text("no-ending\nb.png\n")
    assert ids(listed) == ["no-ending", "b.png"]
    listed.write_text("photo\na.png\n")
    assert ids(listed) == ["a.png"]
    listed.write_text("a.png,1\nb.png,2\n")
    with pytest.raises(InputError, match=r"holds the image 'a\.png', not the columns' names"):
        ids(listed)


def test_names_with_dots_in_tars_are_images_unless_another_one_is_the_sample(tmp_path: Path) -> None:
    names = ("a.png", "img_2020.01.02.png", "img_2020.01.03.png", "x/v1.0.jpg", "x/7.seg.png", "x/7.json", "x/7.png",
             "8.rgb.png", "8.depth.png", "9.heic", "9.json", "._a.png", "readme")  # fmt: skip
    path = write_tar(tmp_path / "t.tar", {name: name.encode() for name in names})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    taken, others = left_out(path)
    assert taken == [
        f"t.tar/{name}"
        for name in (
            "a.png", "img_2020.01.02.png", "img_2020.01.03.png", "x/v1.0.jpg", "x/7.png", "8.rgb.png", "8.depth.png"
        )
    ]  # fmt: skip
    assert others == {
        "t.tar/x/7.seg.png": "another part of a sample that has an image",
        "t.tar/9.heic": ".heic is no image format that can be read",
        "t.tar/9.json": ".json is no image format that can be read",
        "t.tar/._a.png": "hidden: its name starts with a dot",
        "t.tar/readme": "its name has no ending that tells the format",
        "t.tar/link.png": "a link within the tar",
    }
    assert [item.read() for item in find_items([str(path)], None, None)][1] == b"img_2020.01.02.png"


def test_what_folders_and_globs_leave_out_is_told(tmp_path: Path) -> None:
    touch(*(tmp_path / "in" / name for name in ("a.png", "b.MPO", "IMG_1.HEIC", "c.jxl", "raw", "d/.e.png", "d/n.txt")))
    touch(tmp_path / "in" / "out" / "shards" / "a.png", tmp_path / "elsewhere" / "f.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    taken, others = left_out(tmp_path / "in", output=tmp_path / "in" / "out")
    assert taken == ["a.png", "b.MPO"]
    reasons = {os.path.relpath(path, tmp_path / "in"): reason for path, reason in others.items()}
    assert reasons == {
        "IMG_1.HEIC": ".heic is no image format that can be read",
        "c.jxl": ".jxl is no image format that can be read",
        "raw": "its name has no ending that tells the format",
        "d/.e.png": "hidden: its name starts with a dot",
        "d/n.txt": ".txt is no image format that can be read",
        "link": "a link to a folder: give that folder by itself",
    }
    taken, others = left_out(tmp_path / "in" / "*", output=tmp_path / "in" / "out")
    assert taken == ["a.png", "b.MPO"]
    assert {Path(path).name for path in others} == {"IMG_1.HEIC", "c.jxl", "raw", "d", "link"}
    assert left_out(tmp_path / "in" / "**" / "*.png", output=tmp_path / "in" / "out")[0] == ["a.png", "link/f.png"]
    with pytest.raises(InputError, match=r"no image found in .*n\.txt' was left out \(\.txt is no image format"):
        ids(tmp_path / "in" / "d" / "*.txt")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    try:
        touch(Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.png")))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (item,) = find_items([str(tmp_path)], None, None)
    assert item.id == "caf\\xe9.png"
    assert item.read() == b"caf\xe9.png"


def test_what_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    def told(given: object, **columns: str) -> str:
        with pytest.raises(InputError) as error:
            ids(given, **columns)
        assert "\n" not in str(error.value)
        return str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no image found" in told(empty)
    assert "no image found" in told(tmp_path / "*.png")
    assert "there is no" in told(tmp_path / "nowhere")
    touch(tmp_path / "notes.txt")
    assert "cannot be read: give a folder" in told(tmp_path / "notes.txt")
    (tmp_path / "list.csv").write_text("url,name\na.png,a\n")
    assert "--column" in told(tmp_path / "list.csv")
    assert "did you mean url" in told(tmp_path / "list.csv", column="urls")
    assert "no column 'ident'" in told(tmp_path / "list.csv", column="url", id_column="ident")
    (tmp_path / "gap.csv").write_text("path,id\na.png,\n")
    assert "row 1" in told(tmp_path / "gap.csv")
    (tmp_path / "ragged.csv").write_text("path,id\na.png,1,2\n")
    assert "cannot be read" in told(tmp_path / "ragged.csv")
    (tmp_path / "binary.csv").write_bytes(b"path\n\xff\xfe\x00.png\n")
    assert "cannot be read" in told(tmp_path / "binary.csv")
    touch(tmp_path / "bad.parquet", tmp_path / "bad.tar", tmp_path / "nothing.csv")
    (tmp_path / "nothing.csv").write_text("")
    assert "is empty" in told(tmp_path / "nothing.csv")
    assert "cannot be read" in told(tmp_path / "bad.parquet")
    assert "cannot be read" in told(tmp_path / "bad.tar")
    whole = write_tar(tmp_path / "cut.tar", {"a.png": b"x" * 5000})
    whole.write_bytes(whole.read_bytes()[:3000])
    assert "cannot be read" in told(whole)
    assert "decompress" in told(write_tar(tmp_path / "x.tar.gz", {"a.png": b"x"}, "w:gz"))
