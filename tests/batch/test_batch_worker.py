"""A worker's shard: broken images, faults, deaths, two writers; with a segmenter that does as it is told."""

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.runtime.text.tokenizer_files import write_tokenizer
from vocabseg.batch.inputs.find import find_items
from vocabseg.batch.inputs.items import Item
from vocabseg.batch.job import Job, check_names, read_record, settle
from vocabseg.batch.shard import ShardWriter, is_committed
from vocabseg.batch.shard_plan import PlannedShard, extend_plan
from vocabseg.batch.summary import frequencies
from vocabseg.batch.worker import ShardWorker, read_attempts, write_shard
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.manifest import FileRecord, TokenizerSpec, sha256_file
from vocabseg.runtime.errors import BundleError, EngineError, OutputError, VocabsegError, VocabularyError
from vocabseg.runtime.result.result import Result
from vocabseg.runtime.text.vocabulary import Vocabulary

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'vocabseg[batch]'")

CLASSES = ("dark", "light")


class Threshold:
    """Calls pixels above 100 light, one image ahead of its results; `surprise` is called with each image's value."""

    def __init__(self, surprise: Callable[[int], None] = lambda value: None):
        self.surprise = surprise
        self.asked: list[int] = []

    def segment_many(self, images: Iterable[np.ndarray], vocabulary: Vocabulary) -> Iterator[Result]:
        waiting: list[np.ndarray] = []
        for image in images:
            waiting.append(image)
            if len(waiting) > 1:
                yield self._segment(waiting.pop(0))
        yield from map(self._segment, waiting)

    def _segment(self, image: np.ndarray) -> Result:
        value = int(image[0, 0, 0])
        self.asked.append(value)
        self.surprise(value)
        labels = (image[..., 0] > 100).astype(np.int32)
        return Result(labels, np.ones(labels.shape, np.float32), CLASSES, image)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images whose value is ten times their number, and two that are broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.fromarray(np.full((4, 6, 3), 25 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"")
    (folder / "7.png").write_bytes(b"no image")
    return folder


def prepared(photos: Path, name: str = "out") -> tuple[Job, PlannedShard]:
    output = photos.parent / name
    output.mkdir()
    extend_plan(output, find_items([str(photos)], None, None), 64)
    return Job(output, Vocabulary(CLASSES)), PlannedShard(0, 10, "0000000.parquet", 0)


def rows(job: Job, table: str) -> list[dict]:
    return parquet.read_table(job.output / "shards" / "0000000" / table, partitioning=None).to_pylist()


def outputs(job: Job) -> dict[str, bytes]:
    folder = job.output / "shards"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_shard_holds_each_image_once_and_tells_the_broken_ones(photos: Path) -> None:
    job, shard = prepared(photos)
    counts = write_shard(job, Threshold(), shard)
    assert (counts.images, counts.broken) == (8, 2)
    assert counts.occurrences == {0: 4, 1: 4}
    assert counts.pixels == {0: 4 * 24, 1: 4 * 24}
    assert [row["id"] for row in rows(job, "images.parquet")] == [f"{n}.png" for n in (0, 1, 2, 4, 5, 6, 8, 9)]
    errors = {row["id"]: (row["kind"], row["reason"]) for row in rows(job, "errors.parquet")}
    assert errors["3.png"] == ("image", f"{str(photos / '3.png')!r} is empty (0 bytes); get an intact copy")
    assert errors["7.png"][0] == "image"
    assert len(errors) == 2
    masks = rows(job, "masks.parquet")
    assert [(row["id"], row["class"], row["area"]) for row in masks][-1] == ("9.png", "light", 24)
    assert len(masks) == 8
    labels = job.output / rows(job, "images.parquet")[7]["labels"]
    assert np.array_equal(np.asarray(Image.open(labels)), np.ones((4, 6)))
    assert list((job.output / "work").iterdir()) == []


def test_a_committed_shard_is_not_made_again(photos: Path) -> None:
    job, shard = prepared(photos)
    counts = write_shard(job, Threshold(), shard)
    idle = Threshold()
    assert write_shard(job, idle, shard) == counts
    assert idle.asked == []


def test_the_slower_of_two_writers_changes_nothing(photos: Path) -> None:
    job, shard = prepared(photos)
    slow = ShardWriter(job.output, 0, job.write)
    write_shard(job, Threshold(), shard)
    before = outputs(job)
    slow.commit()
    assert outputs(job) == before
    assert list((job.output / "work").iterdir()) == []


@pytest.mark.parametrize("failing", [0, 50, 150, 225])
def test_an_image_that_fails_is_told_and_the_others_are_there_once(photos: Path, failing: int) -> None:
    def surprise(value: int) -> None:
        if value == failing:
            raise ValueError("as told")

    job, shard = prepared(photos)
    counts = write_shard(job, Threshold(surprise), shard)
    assert (counts.images, counts.broken) == (7, 3)
    found = [row["id"] for table in ("images.parquet", "errors.parquet") for row in rows(job, table)]
    assert sorted(found) == [f"{number}.png" for number in range(10)]
    (fault,) = [row for row in rows(job, "errors.parquet") if row["kind"] == "fault"]
    assert (fault["id"], fault["reason"]) == (f"{failing // 25}.png", "ValueError: as told")


def test_many_failures_in_a_row_and_engine_errors_stop_the_run(photos: Path) -> None:
    job, shard = prepared(photos)

    def always(value: int) -> None:
        raise MemoryError("no memory")

    with pytest.raises(EngineError, match="5 images in a row failed, the last with MemoryError: no memory"):
        write_shard(job, Threshold(always), shard)

    def engine(value: int) -> None:
        raise EngineError("no device")

    with pytest.raises(EngineError, match="no device"):
        write_shard(job, Threshold(engine), shard)
    assert not is_committed(job.output, 0)
    assert list((job.output / "work").iterdir()) == []


def _die_at(photos: Path, output: Path, deadly: int) -> None:
    def surprise(value: int) -> None:
        if value == deadly:
            os._exit(9)

    write_shard(Job(output, Vocabulary(CLASSES)), Threshold(surprise), PlannedShard(0, 10, "0000000.parquet", 0))


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5, 9])
def test_an_image_that_kills_the_process_is_found_and_left_out(photos: Path, place: int) -> None:
    job, _ = prepared(photos)
    deadly = 25 * place
    for deaths in range(3):
        process = multiprocessing.get_context("fork").Process(target=_die_at, args=(photos, job.output, deadly))
        process.start()
        process.join()
        assert process.exitcode == 9, f"the worker should die {3 - deaths} times more"
        assert not is_committed(job.output, 0)
        assert len(read_attempts(job.output)) == deaths + 1
    _die_at(photos, job.output, deadly)  # no longer
    errors = {row["id"]: row["kind"] for row in rows(job, "errors.parquet")}
    assert errors == {"3.png": "image", f"{place}.png": "crash", "7.png": "image"}
    assert len(rows(job, "images.parquet")) == 7
    assert not list((job.output / "work").glob("*.progress"))


def test_a_model_whose_opening_kills_the_process_ends_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = prepared(photos)
    (job.output / "work").mkdir()
    monkeypatch.setattr("vocabseg.batch.worker.open_segmenter", lambda job: os._exit(9))
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(target=ShardWorker, args=(job,))
        process.start()
        process.join()
        assert process.exitcode == 9
    row = ShardWorker(job)(PlannedShard(0, 10, "0000000.parquet", 0)._asdict())
    assert "the worker process died 3 times while it opened the model" in row["fault"]
    assert not is_committed(job.output, 0)
    for path in sorted((job.output / "work").glob("*.opening"))[1:]:
        path.unlink()
    monkeypatch.setattr("vocabseg.batch.worker.open_segmenter", lambda job: Threshold())
    row = ShardWorker(job)(PlannedShard(0, 10, "0000000.parquet", 0)._asdict())
    assert row == {"images": 8, "broken": 2, "fault": ""}
    assert list((job.output / "work").iterdir()) == []


def test_a_death_that_no_image_caused_changes_nothing(photos: Path) -> None:
    job, shard = prepared(photos)
    undisturbed, _ = prepared(photos, "undisturbed")
    process = multiprocessing.get_context("fork").Process(target=_die_at, args=(photos, job.output, 200))
    process.start()
    process.join()
    assert process.exitcode == 9
    write_shard(job, Threshold(), shard)
    write_shard(undisturbed, Threshold(), shard)
    assert outputs(job) == outputs(undisturbed)


def test_images_are_read_only_a_few_ahead(tmp_path: Path) -> None:
    """However many images a shard has, those that are in memory at a time are a handful."""
    import weakref

    output = tmp_path / "out"
    output.mkdir()
    for number in range(60):
        Image.fromarray(np.full((4, 6, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    extend_plan(output, find_items([str(tmp_path)], None, None), 64)
    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    most = 0

    class Held(Result):
        __slots__ = ("__weakref__",)

    class Counting(Threshold):
        def _segment(self, image: np.ndarray) -> Result:
            nonlocal most
            result = super()._segment(image)
            held = Held(result.labels, result.scores, result.classes, result.image)
            alive.add(held)
            most = max(most, len(alive))
            return held

    write_shard(Job(output, Vocabulary(CLASSES)), Counting(), PlannedShard(0, 60, "0000000.parquet", 0))
    assert most <= 3


def test_names_of_label_maps(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 5, ("labels",))
    result = Result(np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32), CLASSES)
    names = ("a/x.jpg", "b/X.jpg", "../../etc/passwd", "n" * 300 + ".png", "été 1.png", "...", "trailing/")
    for name in names:
        writer.add(Item(name, "/p"), result)
    writer.commit()
    table = parquet.read_table(tmp_path / "shards" / "0000005" / "images.parquet", partitioning=None).to_pylist()
    assert [row["id"] for row in table] == list(names)
    places = [row["labels"] for row in table]
    assert len({place.casefold() for place in places}) == len(names)
    for place in places:
        assert (tmp_path / place).resolve().parent == tmp_path / "shards" / "0000005" / "labels"
        assert (tmp_path / place).is_file()


def test_names_are_measured_by_the_tokenizer_of_the_bundles_prompt(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the package tokenizers reads other tokenizers than CLIP's")
    bundle = open_bundle(demo_folder())
    manifest = bundle.manifest
    place = write_tokenizer(tmp_path / "other", "pieces") / "tokenizer.json"
    spec = TokenizerSpec(file=str(place), kind="huggingface")  # letter by letter, so that its sequences are longer
    prompt = msgspec.structs.replace(manifest.prompts.region, tokenizer=spec)
    prompts = msgspec.structs.replace(manifest.prompts, region=prompt)
    unlisted = bundle.with_manifest(msgspec.structs.replace(manifest, prompts=prompts))
    with pytest.raises(BundleError, match="does not list"):
        check_names(unlisted, Vocabulary(["sky"]))
    record = FileRecord(file=str(place), bytes=place.stat().st_size, sha256=sha256_file(place))
    files = manifest.files | {"other tokenizer": record}
    other = bundle.with_manifest(msgspec.structs.replace(manifest, prompts=prompts, files=files))
    for templates in (None, ["a photo of a {}."]):
        names = Vocabulary(["sky|theatres and authors other"], templates=templates)
        check_names(bundle, names)
        with pytest.raises(VocabularyError, match="makes a prompt of"):
            check_names(other, names)


def test_synonyms_ids_and_colours_are_part_of_the_job(tmp_path: Path) -> None:
    plain, bundle = Job(tmp_path, Vocabulary(["cat", "sky"])), open_bundle(demo_folder())
    assert plain.record(bundle).vocabulary is None
    image = np.zeros((4, 4, 3), np.uint8)
    known = Vocabulary(
        ["cat|kitten", "sky|sky"], other=True, ids=[7, 3], colours=["red", None], examples={"sky": [image]}
    )
    job = Job(tmp_path, known)
    settle(tmp_path, job.record(bundle))
    assert read_record(tmp_path).categories == known.categories
    with pytest.raises(OutputError, match="synonyms, contrast, examples, ids or colours"):
        settle(tmp_path, plain.record(bundle))
    settle(tmp_path, pickle.loads(pickle.dumps(job)).record(bundle))
    writer = ShardWriter(tmp_path, 5, ("rle",))
    result = Result(np.full((2, 2), 1, np.int32), np.ones((2, 2), np.float32), known.names, categories=known.categories)
    writer.add(Item("a", "/a"), result)
    writer.commit()
    (row,) = parquet.read_table(tmp_path / "shards" / "0000005" / "masks.parquet", partitioning=None).to_pylist()
    assert (row["class_index"], row["class"], row["category_id"]) == (1, "sky", 3)
    assert frequencies(tmp_path).categories.palette(3)[0].tolist() == [255, 0, 0]


def test_a_worker_whose_driver_was_replaced_commits_nothing_that_is_not_whole(photos: Path) -> None:
    """Its unfinished work is cleared at any moment between its first image and its commit."""
    from vocabseg.batch.coordinator import _clear_work

    for moment in (0, 100, 225):
        job, shard = prepared(photos, f"out-{moment}")

        def surprise(value: int, moment: int = moment, output: Path = job.output) -> None:
            if value == moment:
                _clear_work(output)

        with pytest.raises((VocabsegError, OSError)):
            write_shard(job, Threshold(surprise), shard)
        assert not is_committed(job.output, 0)
        assert write_shard(job, Threshold(), shard).images == 8
    late = ShardWriter(job.output, 1, job.write)
    _clear_work(job.output)
    with pytest.raises(VocabsegError):
        late.commit()
    assert not is_committed(job.output, 1)
