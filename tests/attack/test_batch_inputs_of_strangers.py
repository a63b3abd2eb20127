"""Inputs of a batch that are no files, or its own results."""

import os
from pathlib import Path

import pytest

from tests.batch.test_batch_worker import CLASSES, Threshold
from vocabseg.batch.inputs.find import find_items
from vocabseg.batch.inputs.items import InputError
from vocabseg.batch.job import FILE, Job, settle
from vocabseg.batch.shard_plan import extend_plan
from vocabseg.batch.worker import write_shard
from vocabseg.benchmarks.scale.processes import write_images
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.text.vocabulary import Vocabulary

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'vocabseg[batch]'")


def ids(*inputs: object) -> list[str]:
    return [item.id for item in find_items([str(given) for given in inputs], None, None)]


@pytest.mark.parametrize("name", ["pipe.png", "device.png"])
def test_pipes_and_devices_are_no_images(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "pipe.png":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ImageError, match="it is a pipe or a device, not a file"):
        load_image(path)
    write_images(tmp_path, 2)
    (tmp_path / "list.csv").write_text(f"id,path\nlisted,{name}\n")
    output = tmp_path / "out"
    output.mkdir()
    planned = extend_plan(output, find_items([str(tmp_path), str(tmp_path / "list.csv")], None, None), 64)
    counts = write_shard(Job(output, Vocabulary(CLASSES)), Threshold(), planned.shards[0])
    assert (counts.images, counts.broken) == (2, 2)
    errors = parquet.read_table(output / "shards" / "0000000" / "errors.parquet", partitioning=None).to_pylist()
    assert {row["id"]: row["kind"] for row in errors} == {"listed": "image", name: "image"}


@pytest.mark.parametrize("name", ["list.csv", "list.parquet", "part.tar"])
def test_pipes_are_neither_lists_nor_tars(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="it is a pipe or a device, not a file; give a list or a tar"):
        ids(tmp_path / name)


def test_results_within_the_inputs_are_not_taken_as_inputs(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "photos" / "results" / "first"
    write_images(photos, 3)
    output.mkdir(parents=True)
    job = Job(output, Vocabulary(CLASSES))
    settle(output, job.record(open_bundle(None)))
    assert (output / FILE).is_file()
    planned = extend_plan(output, find_items([str(photos)], None, None), 64)
    assert write_shard(job, Threshold(), planned.shards[0]).images == 3
    assert len(list(output.rglob("labels/*.png"))) == 3
    expected = ["0000.png", "0001.png", "0002.png"]
    assert ids(photos) == expected
    assert ids(photos / "**" / "*.png") == expected
    for given in (output, output / "shards", photos / "results", output / "shards" / "*" / "labels" / "*.png"):
        with pytest.raises(InputError, match="but a batch's results"):
            ids(given)
    # What is named itself is taken.
    assert ids(output / "shards" / "0000000" / "labels" / "0001.png") == ["0001.png"]
    again = extend_plan(output, find_items([str(photos)], None, None), 64)
    assert [shard.images for shard in again.shards] == [3]
