import multiprocessing
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from vocabseg.runtime.files import cache_folder
from vocabseg.runtime.text import cache as text_cache
from vocabseg.runtime.text.cache import TextCache


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    cache = TextCache(tmp_path / "a" / "b")
    assert cache.read([key(1)]) == {}
    assert not (tmp_path / "a").exists()
    values = {key(number): bytes([number % 256]) * 8 for number in range(1234)}
    cache.write(values)
    cache.write({key(3): b"new"})
    found = TextCache(tmp_path / "a" / "b").read([key(number) for number in range(2000)])
    assert found == {**values, key(3): b"new"}
    assert cache.read([]) == {}


def test_no_folder_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TextCache(None)
    cache.write({key(1): b"x"})
    assert cache.read([key(1)]) == {}


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", "")
    assert cache_folder() is None
    monkeypatch.delenv("VOCABSEG_CACHE_DIR")
    pytest.importorskip("platformdirs", reason="platformdirs tells the user's cache folder")
    folder = cache_folder()
    assert folder is not None
    assert folder.name == "vocabseg"


def test_the_oldest_go_when_the_file_is_full(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, limit_bytes=400_000)
    for start in range(0, 1000, 50):
        cache.write({key(number): os.urandom(2048) for number in range(start, start + 50)})
    kept = sorted(int.from_bytes(found, "little") for found in cache.read([key(number) for number in range(1000)]))
    assert kept == list(range(kept[0], 1000))
    assert 100 < len(kept) < 200
    assert (tmp_path / "text.sqlite").stat().st_size < 650_000
    # One that is written again is young again.
    cache.write({key(kept[0]): b"x"})
    cache.write({key(number): os.urandom(2048) for number in range(1000, 1000 + len(kept))})
    assert cache.read([key(kept[0])])
    assert not cache.read([key(kept[1])])


def test_a_value_beyond_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, limit_bytes=100_000)
    cache.write({key(1): bytes(1_000_000)})
    assert cache.read([key(1)]) == {}
    cache.write({key(2): b"small"})
    assert cache.read([key(2)]) == {key(2): b"small"}


@pytest.mark.parametrize("spoil", ["text", "cut", "middle"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, spoil: str) -> None:
    file = tmp_path / "text.sqlite"
    values = {key(number): os.urandom(2048) for number in range(200)}
    TextCache(tmp_path).write(values)
    data = file.read_bytes()
    spoilt = {
        "text": b"this is no database" * 500,
        "cut": data[: len(data) // 3],
        "middle": data[:4096] + os.urandom(len(data) - 4096),
    }
    file.write_bytes(spoilt[spoil])
    cache = TextCache(tmp_path)
    with pytest.warns(RuntimeWarning, match="is damaged and was renamed") as caught:
        found = cache.read(list(values))
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert all(values[found_key] == value for found_key, value in found.items())
    assert (tmp_path / "text.sqlite.damaged").exists()
    cache.write(values)
    assert cache.read(list(values)) == values


def test_a_locked_file_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "TIMEOUT", 0.05)
    cache = TextCache(tmp_path)
    cache.write({key(1): b"x"})
    other = sqlite3.connect(tmp_path / "text.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.warns(RuntimeWarning, match=r"cannot be used \(database is locked\)") as caught:
        assert cache.read([key(1)]) == {}
    cache.write({key(2): b"y"})
    assert len(caught) == 1
    other.execute("ROLLBACK")
    other.close()
    assert cache.read([key(1), key(2)]) == {key(1): b"x"}


def test_an_impossible_folder_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = TextCache(tmp_path / "file" / "cache")
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        cache.write({key(1): b"x"})
    assert cache.read([key(1)]) == {}
    (tmp_path / "text.sqlite").mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert TextCache(tmp_path).read([key(1)]) == {}


def test_a_file_of_another_layout_is_done_without(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "text.sqlite") as connection:
        connection.execute("CREATE TABLE embeddings (something INTEGER)")
    connection.close()
    cache = TextCache(tmp_path)
    with pytest.warns(RuntimeWarning, match="cannot be used") as caught:
        assert cache.read([key(1)]) == {}
    cache.write({key(1): b"x"})
    assert len(caught) == 1


def _write_many(folder: Path, first: int) -> None:
    warnings.simplefilter("error")
    cache = TextCache(folder)
    for start in range(first, first + 400, 20):
        mine = {key(number): key(number) * 16 for number in range(start, start + 20)}
        shared = {key(10_000 + number): key(number) for number in range(20)}
        cache.write({**mine, **shared})
        assert cache.read(list(mine)) == mine


def test_two_processes_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "TIMEOUT", 30.0)
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processes = [context.Process(target=_write_many, args=(tmp_path, first)) for first in (0, 1000)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    numbers = [*range(400), *range(1000, 1400)]
    assert TextCache(tmp_path).read([key(number) for number in numbers]) == {
        key(number): key(number) * 16 for number in numbers
    }
