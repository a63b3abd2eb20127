"""Lists, plans and parameters that fuzzing found to be a fault of the program's own."""

from pathlib import Path

import pytest

from vocabseg.batch.inputs.items import InputError, Item
from vocabseg.batch.inputs.lists import list_items
from vocabseg.batch.job import PLAN
from vocabseg.batch.shard_plan import extend_plan, planned_shards, read_shard
from vocabseg.runtime.errors import OutputError
from vocabseg.serving.answering.requests import RequestError, read_options


@pytest.mark.parametrize(
    "content",
    [
        b"path\rid\nx,1\n",
        b"pa\rth\n",
        b'"path\n',
        b"a\x1cb,c\n1,2\n",
        b"\xef\xbb\xbf\n\n",
        b"path\n\xff\n",
        b"path," + b"x" * (2 << 20),
    ],
)
def test_a_list_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(list_items(str(path), None, None))
    assert str(caught.value).splitlines() == [str(caught.value)]


def readable(output: Path) -> bool:
    try:
        for shard in planned_shards(output):
            read_shard(output, shard)
    except OutputError:
        return False
    return True


def test_a_damaged_plan_is_told_whatever_byte_is_wrong(tmp_path: Path) -> None:
    items = [Item(f"{number}.jpg", f"/photos/{number}.jpg") for number in range(6)]
    extend_plan(tmp_path, items, 2)
    (path,) = (tmp_path / PLAN).iterdir()
    right = path.read_bytes()
    damaged = 0
    for place in range(0, len(right), 7):
        for wrong in (0x00, 0xFF, right[place] ^ 0x10):
            path.write_bytes(right[:place] + bytes([wrong]) + right[place + 1 :])
            damaged += not readable(tmp_path)
    for end in range(0, len(right), 29):
        path.write_bytes(right[:end])
        with pytest.raises(OutputError):
            list(planned_shards(tmp_path))
    assert damaged > 50
    path.write_bytes(right)
    assert [item for shard in planned_shards(tmp_path) for item in read_shard(tmp_path, shard)] == items
    path.rename(path.with_name("seven.parquet"))
    with pytest.raises(OutputError):
        list(planned_shards(tmp_path))


@pytest.mark.parametrize("name", ["object_mask_threshold", "overlap_threshold", "vocabulary\ud800"])
def test_half_a_surrogate_pair_in_a_request_is_told(name: str) -> None:
    with pytest.raises(RequestError):
        read_options({name: "\ud800"})
