"""The plan: each image once, in shards that do not depend on interruptions."""

from pathlib import Path

import pytest

from vocabseg.batch import shard_plan
from vocabseg.batch.inputs.items import InputError, Item
from vocabseg.batch.shard_plan import extend_plan, planned_shards, read_shard

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'vocabseg[batch]'")


def items(count: int, first: int = 0) -> list[Item]:
    return [Item(f"{number}.png", f"/photos/{number}.png") for number in range(first, count)]


def planned(output: Path) -> list[list[str]]:
    return [[item.id for item in read_shard(output, shard)] for shard in planned_shards(output)]


def test_images_go_to_shards_in_order(tmp_path: Path) -> None:
    found = extend_plan(tmp_path, [*items(6), Item("t/6.jpg", "/t.tar", 512, 77)], 3)
    assert planned(tmp_path) == [["0.png", "1.png", "2.png"], ["3.png", "4.png", "5.png"], ["t/6.jpg"]]
    assert [(shard.number, shard.images) for shard in found.shards] == [(0, 3), (1, 3), (2, 1)]
    assert found.absent == 0
    assert read_shard(tmp_path, found.shards[2]) == [Item("t/6.jpg", "/t.tar", 512, 77)]


def test_new_images_go_behind_the_planned_ones(tmp_path: Path) -> None:
    extend_plan(tmp_path, items(4), 3)
    before = {path: path.read_bytes() for path in (tmp_path / "plan").iterdir()}
    extend_plan(tmp_path, reversed(items(4)), 3)  # another order is no other input
    assert sum(map(len, planned(tmp_path))) == 4
    assert extend_plan(tmp_path, items(7, 2), 2).absent == 2
    assert planned(tmp_path) == [["0.png", "1.png", "2.png"], ["3.png"], ["4.png", "5.png"], ["6.png"]]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_interrupted_plan_becomes_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_plan, "SHARDS_PER_FILE", 2)

    def interrupted():
        yield from items(11)
        raise KeyboardInterrupt

    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    extend_plan(tmp_path / "whole", items(20), 3)
    with pytest.raises(KeyboardInterrupt):
        extend_plan(tmp_path / "parts", interrupted(), 3)
    assert len(planned(tmp_path / "parts")) == 2
    extend_plan(tmp_path / "parts", items(20), 3)
    assert planned(tmp_path / "parts") == planned(tmp_path / "whole")


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the id '1\.png' occurs twice.*'/other/1\.png'"):
        extend_plan(tmp_path, [*items(3), Item("1.png", "/other/1.png")], 2)
    extend_plan(tmp_path, items(3), 2)
    with pytest.raises(InputError, match=r"has another image '1\.png'"):
        extend_plan(tmp_path, [Item("1.png", "/other/1.png")], 2)
    with pytest.raises(InputError, match="occurs twice"):  # among planned ones too
        extend_plan(tmp_path, [*items(3), *items(1)], 2)
