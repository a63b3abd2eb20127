"""Files appear whole or not at all, and what stands in the way is said in one line."""

import json
import os
import stat

import pytest

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.files import atomic_write, check_apart, check_folder, check_writable, strict_json


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "out.bin"
    for content in (b"first", b"second, longer"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["out.bin"]


def test_the_old_file_stays_until_the_block_ends_and_when_it_fails(tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")

    def fail_half_way():
        with atomic_write(path) as file:
            file.write(b"half of the new")
            file.flush()
            assert path.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_a_full_disk_is_an_output_error(tmp_path):
    message = r"^cannot write '.*out\.bin': no space left on device; nothing was changed$"
    with pytest.raises(OutputError, match=message), atomic_write(tmp_path / "out.bin"):
        raise OSError(28, os.strerror(28))
    assert os.listdir(tmp_path) == []


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "out.bin") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.bin").stat().st_mode) == 0o640


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    with atomic_write(tmp_path / "link.bin") as file:
        file.write(b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_the_longest_allowed_name_works(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    with atomic_write(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out.png", "does not exist; create it first"),
        ("file.txt/out.png", "is not a folder; choose another place"),
        ("", "folder or a device"),
        ("/dev/null", "folder or a device"),
        ("x" * 300, "file name too long"),
        ("nul\0.png", "null"),
        ("/proc/vocabseg.png", "cannot write '/proc/vocabseg.png': .*"),
    ],
)
def test_impossible_places(tmp_path, name, message):
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(OutputError, match=message) as caught, atomic_write(os.path.join(tmp_path, name)) as file:
        file.write(b"x")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        check_writable(tmp_path / "out.png")


def test_check_writable_writes_nothing(tmp_path):
    assert check_writable(tmp_path / "out.png") == (tmp_path / "out.png").resolve()
    assert os.listdir(tmp_path) == []


def test_json_holds_no_number_that_json_does_not_have():
    def fail(name: str) -> None:
        raise AssertionError(name)

    content = {"a": [1.5, float("nan"), float("inf")], "b": "-Infinity \ud800", "c": -float("inf")}
    text = strict_json(content, indent=1)
    expected = {"a": [1.5, None, None], "b": "-Infinity \ud800", "c": None}
    assert json.loads(text, parse_constant=fail) == expected
    assert strict_json({"a": "é"}, separators=(",", ":")) == '{"a":"é"}'.encode()


def test_an_output_is_no_input_however_it_is_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "in.png").touch()
    (tmp_path / "file").symlink_to(tmp_path / "sub" / "in.png")
    (tmp_path / "folder").symlink_to(tmp_path / "sub")
    inputs = [tmp_path / "other.png", tmp_path / "folder" / "in.png"]
    for output in ("sub/in.png", "sub/../sub/in.png", "file", "folder/in.png", "sub", "folder"):
        with pytest.raises(OutputError, match=r"would replace the input .*in\.png"):
            check_apart([tmp_path / "new.png", tmp_path / output], inputs)
    check_apart([tmp_path / "sub" / "in.png.json", tmp_path / "su", tmp_path / "sub" / "i"], inputs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/deeper", "file' is not a folder"),
        ("nul\0", "null"),
        ("/proc/1/new", r"cannot make the folder '/proc/1/new'"),
    ],
)
def test_folders_that_cannot_be_made(tmp_path, name, message, monkeypatch):
    (tmp_path / "file").touch()
    if name.startswith("/proc"):  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=message):
        check_folder(os.path.join(tmp_path, name))


def test_check_folder_makes_nothing(tmp_path):
    assert check_folder(tmp_path / "a" / "b") == tmp_path.resolve() / "a" / "b"
    assert os.listdir(tmp_path) == []
