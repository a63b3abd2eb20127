"""`vocabseg batch` on a real Ray on this machine: outputs, continuing, dying workers and drivers, refusals."""

import importlib.util
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.batch.runs import SLOW, run, wait_for_end, wait_for_shards
from tests.batch.test_batch_inputs import write_tar
from vocabseg.batch.job import LOCK
from vocabseg.benchmarks.scale.processes import (
    committed_shards,
    kill,
    outputs,
    own_megabytes,
    started,
    workers_of,
    write_images,
)
from vocabseg.runtime.errors import EngineError, VocabsegError

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'vocabseg[batch]'")
if find_spec("ray") is None:  # importing it here would keep this process from starting a private one
    pytest.skip("ray is not installed: pip install 'vocabseg[batch]'", allow_module_level=True)

CLASSES = "cloudy sky, night sky, grass, sand, water, red heart, blue circle"
IMAGES = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, IMAGES)
    (folder / "0005.png").write_bytes(b"no image")
    return folder


def slow(photos: Path, output: Path) -> tuple[object, ...]:
    return (photos, "-c", CLASSES, "-o", output, "--shard-size", 3, "--workers", 2, "--threads", 1, *SLOW)


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run(*slow(photos, output))
    assert done.returncode == 0, done.stderr
    return output


def table(output: Path, name: str) -> list[dict]:
    files = sorted((output / "shards").glob(f"*/{name}"))
    return [row for file in files for row in parquet.read_table(file, partitioning=None).to_pylist()]


def test_every_kind_of_input_at_once_equals_the_local_segmenter(tmp_path: Path) -> None:
    from pycocotools.mask import decode

    from vocabseg import Vocabulary, load

    folder, globbed, listed, packed = (
        write_images(tmp_path / name, 2, 2 * place)
        for place, name in enumerate(("folder", "globbed", "listed", "packed"))
    )
    broken = b"\x89PNG\r\n\x1a\n" + b"0" * 9
    (tmp_path / "folder" / "broken.jpg").write_bytes(folder[0].read_bytes()[:1000])
    (tmp_path / "list.csv").write_text(
        f"id,path\nfirst,listed/{listed[0].name}\nsecond,{listed[1]}\ngone,nowhere.png\n"
    )
    (tmp_path / "table").mkdir()
    single = write_images(tmp_path / "table", 1, 8)
    import pyarrow

    parquet.write_table(pyarrow.table({"image": [single[0].name]}), tmp_path / "table" / "list.parquet")
    tar = write_tar(
        tmp_path / "part.tar",
        {**{path.name: path.read_bytes() for path in packed}, "x.png": broken},
    )
    output = tmp_path / "out"
    done = run(
        tmp_path / "folder", tmp_path / "globbed" / "*.png", tmp_path / "list.csv", tmp_path / "table" / "list.parquet",
        tar, "-c", CLASSES, "-o", output, "--shard-size", 4, "--workers", 1, "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "12 images in 3 shards, 1 worker with 1 thread each" in done.stderr
    expected = {path.name: path for path in (*folder, *globbed, *single)}
    expected |= {"first": listed[0], "second": listed[1]} | {f"part.tar/{path.name}": path for path in packed}
    rows = {row["id"]: row for row in table(output, "images.parquet")}
    assert rows.keys() == expected.keys()
    errors = {row["id"]: row["reason"] for row in parquet.read_table(output / "errors.parquet").to_pylist()}
    assert errors.keys() == {"broken.jpg", "gone", "part.tar/x.png"}
    assert errors["gone"] == f"no such image file: {str(tmp_path / 'nowhere.png')!r}; check the path"
    assert "part.tar/x.png" in errors["part.tar/x.png"]
    masks = table(output, "masks.parquet")
    segmenter, vocabulary = load(), Vocabulary.of(CLASSES)
    for identity, path in expected.items():
        labels = segmenter(path, vocabulary).labels
        with Image.open(output / rows[identity]["labels"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), labels)
        painted = np.full(labels.shape, -1, np.int32)
        for mask in (mask for mask in masks if mask["id"] == identity):
            size = [mask["height"], mask["width"]]
            painted[decode({"size": size, "counts": mask["counts"].encode()}) > 0] = mask["class_index"]
            assert mask["class"] == vocabulary.names[mask["class_index"]]
        np.testing.assert_array_equal(painted, labels)
    written = [output / "summary" / name for name in ("classes.csv", "classes.png", "contact_sheet.png")]
    assert done.stdout.split() == [str(path) for path in (*written[:2], output / "errors.parquet", written[2])]
    lines = written[0].read_text().splitlines()
    assert lines[0] == "class,index,images,pixels,percent"
    assert sum(int(line.split(",")[3]) for line in lines[1:]) == 9 * 96 * 120
    assert min(Image.open(written[2]).size) > 200
    assert not (output / "work").exists()


def test_the_same_command_again_does_nothing(photos: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    done = run(*slow(photos, undisturbed))
    assert done.returncode == 0, done.stderr
    assert f"{IMAGES} of {IMAGES} images are done already: nothing is left to do" in done.stderr
    assert "worker" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    changed = {str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {str(undisturbed)}  # where the workers' folder comes and goes


def test_a_killed_worker_loses_and_doubles_nothing(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with started(*slow(photos, output)) as process:
        wait_for_shards(process, output, 2)
        victims = workers_of(process.pid)
        assert len(victims) == 2
        kill(victims[0])
        assert committed_shards(output) < IMAGES // 3, "the worker was killed too late to disturb anything"
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert outputs(output) == outputs(undisturbed)


def test_a_killed_driver_goes_on_where_it_was(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with started(*slow(photos, output)) as process:
        wait_for_shards(process, output, 2)
        workers = workers_of(process.pid)
        assert workers
        refused = run(*slow(photos, output))
        assert refused.returncode == 2
        assert "another vocabseg batch works on" in refused.stderr
        kill(process.pid)
        process.communicate()
    left = committed_shards(output)
    assert 2 <= left < IMAGES // 3, "the driver was killed too late to disturb anything"
    done = run(*slow(photos, output))
    assert done.returncode == 0, done.stderr
    assert "images are done already: going on from there" in done.stderr
    assert outputs(output) == outputs(undisturbed)
    wait_for_end(workers)


def test_images_that_come_later_and_broken_ones_that_are_mended(
    photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    more, output = tmp_path / "photos", tmp_path / "out"
    write_images(more, 5)
    (more / "0002.png").write_bytes(b"")
    options = ("-c", CLASSES, "-o", output, "--shard-size", 3, "-w", "rle", "--threads", 1)
    assert run(more, *options).returncode == 0
    assert committed_shards(output) == 2
    before = outputs(output)
    write_images(more, 1, 2)
    write_images(more, 2, 5)
    done = run(more, *options, "--retry-broken")
    assert done.returncode == 0, done.stderr
    assert committed_shards(output) == 3
    assert sorted(row["id"] for row in table(output, "images.parquet")) == [f"000{number}.png" for number in range(7)]
    assert parquet.read_table(output / "errors.parquet").num_rows == 0
    assert not list(output.rglob("shards/*/labels"))
    for path, content in before.items():
        if path.startswith(("shards/0000001", "plan/")):
            assert (output / path).read_bytes() == content
    assert (output / "summary" / "contact_sheet.png").is_file()


def test_what_was_left_out_is_counted_and_listed_and_all_broken_is_a_failure(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    write_images(photos, 1)
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "1, and 2.txt").write_text("notes")
    options = ("-c", CLASSES, "-w", "labels", "--threads", 1, "-q")
    done = run(photos, "-o", output, *options)
    assert done.returncode == 0, done.stderr
    assert "2 files left out (1: .txt is no image format that can be read; 1: .heic is no image" in done.stderr
    assert (output / "left_out.csv").read_text().splitlines()[1:] == [
        f'"{photos}/1, and 2.txt",.txt is no image format that can be read',
        f"{photos}/IMG_1.HEIC,.heic is no image format that can be read",
    ]
    assert done.stdout.split()[-1] == str(output / "left_out.csv")
    (photos / "IMG_1.HEIC").unlink()
    (photos / "1, and 2.txt").unlink()
    again = run(photos, "-o", output, *options)
    assert (again.returncode, again.stderr) == (0, "")
    assert not (output / "left_out.csv").exists()
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    broken = tmp_path / "broken"
    for _ in range(2):  # the second time nothing is left to do
        done = run(photos, "-o", broken, *options)
        assert done.returncode == 3, done.stderr
        assert "1 broken image" in done.stderr


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    for path in write_images(photos, 20):
        for copy in range(20):
            shutil.copy(path, photos / f"{path.stem}-{copy}.png")
    options = ("-c", CLASSES, "-o", output, "--shard-size", 10, "--workers", 1, "--threads", 1, "-q")
    with started(photos, *options) as process:
        early, late = (median_megabytes(process, output, *shards) for shards in ((8, 16), (26, 34)))
    assert late - early < 16, f"the worker grew from {early:.0f} to {late:.0f} MB"


def median_megabytes(process: subprocess.Popen[str], output: Path, first: int, last: int) -> float:
    """The one worker's memory between two numbers of shards; at an instant it is some 20 MB more or less."""
    wait_for_shards(process, output, first)
    (worker,) = workers_of(process.pid)
    samples = []
    while committed_shards(output) < last:
        assert process.poll() is None, process.communicate()[1]
        samples.append(own_megabytes(worker))
        time.sleep(0.02)
    return float(np.median(samples))


def refused(*arguments: object) -> str:
    """The error of a command that must be refused before any work."""
    from vocabseg.cli import application

    result = CliRunner().invoke(application(), ["batch", *map(str, arguments)])
    assert isinstance(result.exception, VocabsegError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_another_job_in_the_same_folder_is_refused(photos: Path, undisturbed: Path) -> None:
    before = outputs(undisturbed)
    common = (photos, "-o", undisturbed)
    assert "other classes (7, now 2, in this order)" in refused(*common, *SLOW, "-c", "a, b")
    swapped = "night sky, cloudy sky, grass, sand, water, red heart, blue circle"
    assert "other classes" in refused(*common, *SLOW, "-c", swapped)
    assert "other bundle or settings" in refused(*common, "-c", CLASSES)
    assert "other kinds of output (labels, rle, now rle)" in refused(*common, *SLOW, "-c", CLASSES, "-w", "rle")
    engines = (*common, *SLOW, "-c", CLASSES, "--engine")
    if importlib.util.find_spec("openvino") is not None:
        assert "other engine (onnxruntime-cpu-float32, now openvino-cpu-float32)" in refused(*engines, "openvino")
    assert outputs(undisturbed) == before


def test_what_cannot_be_used_is_refused_and_leaves_no_folder(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("-c", CLASSES, "-o", output)
    assert "there is no" in refused(tmp_path / "nowhere", *options)
    assert "tokens, but the text encoder takes" in refused(photos, "-c", "word " * 100, "-o", output)
    assert "no such folder" in refused(photos, *options, "-b", tmp_path / "nowhere")
    assert "use --device cuda" in refused(photos, *options, "--device", "cuda:1")
    assert "class name 2 is empty" in refused(photos, "-c", "a,,b", "-o", output)
    assert not output.exists()
    assert "occurs twice" in refused(photos, photos / "*.png", *options)
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot write in" in refused(photos, "-c", CLASSES, "-o", blocked / "out")
    assert "holds other files" in refused(photos, "-c", CLASSES, "-o", tmp_path)
    (tmp_path / LOCK).touch()  # of another program, beside files that are none of a batch's
    assert "holds other files" in refused(photos, "-c", CLASSES, "-o", tmp_path)


def test_a_cluster_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "localhost:port"):
        error = refused(photos, "-c", CLASSES, "-o", tmp_path / "out", "--ray-address", address)
        assert f"there is no Ray at '{address}'" in error


def test_without_ray_the_command_says_what_to_install(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vocabseg.commands import packages

    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    from vocabseg.cli import application

    result = CliRunner().invoke(application(), ["batch", str(photos), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, EngineError)
    assert str(result.exception) == "vocabseg batch needs the package ray: pip install 'vocabseg[batch]'"
