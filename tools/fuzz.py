"""Fuzzes one of the package's readers: any input may be refused, but only with an error of the package's own.

    pip install atheris
    python tools/fuzz.py                             # the targets
    python tools/fuzz.py manifest -max_total_time=60 # libFuzzer's options; a crash leaves its input in a file
    python tools/fuzz.py manifest crash-0123abc      # once more, with that input

A kind of input that is found so belongs into tests/attack.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
from PIL import Image

with atheris.instrument_imports(include=["vocabseg"]):
    from vocabseg.batch.inputs.items import Item
    from vocabseg.batch.inputs.lists import list_items
    from vocabseg.batch.job import PLAN
    from vocabseg.batch.shard_plan import extend_plan, planned_shards, read_shard
    from vocabseg.benchmarks.datasets.coco_files import (
        InstancesFile,
        InstanceTruth,
        PanopticFile,
        read_annotations,
    )
    from vocabseg.benchmarks.datasets.label_maps import read_label_map
    from vocabseg.runtime.bundle.contract import check_contract
    from vocabseg.runtime.bundle.folder import demo_folder
    from vocabseg.runtime.bundle.manifest import read_manifest
    from vocabseg.runtime.bundle.outline import outline
    from vocabseg.runtime.errors import VocabsegError
    from vocabseg.runtime.images import load_image
    from vocabseg.runtime.result.run_lengths import RunLengths, compressed
    from vocabseg.runtime.text.tokenizer import Tokenizer
    from vocabseg.runtime.text.vocabulary import Vocabulary
    from vocabseg.serving.answering.requests import RequestError, read_options

SCRATCH = Path(tempfile.mkdtemp(prefix="vocabseg-fuzz-"))
# Fewer pixels than the default, so that decoding does not take all the time.
PIXELS = 1_000_000


def written(data: bytes, name: str) -> Path:
    path = SCRATCH / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def manifest(data: bytes) -> None:
    check_contract(SCRATCH, read_manifest(written(data, "manifest.json")))


def graph(data: bytes) -> None:
    try:
        outline(data)
    except ValueError as error:
        assert "\n" not in str(error), error  # noqa: PT017


def tokenizer(data: bytes) -> None:
    Tokenizer.from_file(written(data, "tokenizer.json")).encode("a photo of a cat.")


def class_names(data: bytes) -> None:
    Vocabulary.of(f"@{written(data, 'names.txt')}")


def image(data: bytes) -> None:
    load_image(data, PIXELS)


def label_map(data: bytes) -> None:
    if int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big") < PIXELS:  # of a PNG
        read_label_map(written(data, "labels.png"))


def run_lengths(data: bytes) -> None:
    size = (1 + data[0] % 16, 1 + data[1] % 16) if len(data) > 1 else (1, 1)
    try:
        compressed(RunLengths(size=size, counts=data[2:].decode("latin-1")), size)
    except ValueError as error:
        assert str(error).startswith("whose"), error  # noqa: PT017


def annotations(data: bytes) -> None:
    path = written(data, "instances.json")
    with contextlib.suppress(VocabsegError):
        read_annotations(path, PanopticFile)
    file = read_annotations(path, InstancesFile)
    truth = InstanceTruth(file, {category.id: index for index, category in enumerate(file.categories)})
    for each in file.images:
        if each.height * each.width < PIXELS:
            truth(str(each.id))


def options(data: bytes) -> None:
    try:
        parameters = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(parameters, dict):
        with contextlib.suppress(RequestError):
            read_options(parameters)


def plan(data: bytes) -> None:
    written(data, f"{PLAN}/0000000.parquet")
    for shard in planned_shards(SCRATCH):
        read_shard(SCRATCH, shard)


def image_list(data: bytes) -> None:
    for _ in list_items(str(written(data, "list.csv")), None, None):
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        manifest, graph, tokenizer, class_names, image, label_map, run_lengths, annotations, options, plan, image_list
    )
}  # fmt: skip
FILES = {"manifest": "manifest.json", "graph": "image_encoder.onnx", "tokenizer": "tokenizer.json"}
TEXTS = {
    "class_names": ["cat\nwide grass\n"],
    "image_list": ["path,id\na.png,1\n"],
    "options": ['{"seen": "[\\"cat\\"]", "templates": "[\\"a {}.\\"]", "overlap_threshold": 0.5}'],
    "run_lengths": ["\x03\x0500l0"],
    "annotations": [
        json.dumps({
            "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"image_id": 1, "category_id": 1, "segmentation": mask, "segments_info": []}],
        })
        for mask in ([[0, 0, 5, 0, 5, 3]], {"size": [4, 6], "counts": [3, 21]}, {"size": [4, 6], "counts": "3e0"})
    ],
}  # fmt: skip


def seeds(name: str) -> list[bytes]:
    """Inputs that are right, for the fuzzer to change."""
    if name in FILES:
        return [(demo_folder() / FILES[name]).read_bytes()]
    if name == "plan":
        extend_plan(SCRATCH, [Item(f"{number}.jpg", f"/{number}.jpg") for number in range(3)], 2)
        return [path.read_bytes() for path in (SCRATCH / PLAN).glob("*.parquet")]
    if name in ("image", "label_map"):
        pictures = {kind: io.BytesIO() for kind in ("PNG", "TIFF", "GIF", "BMP", "PPM", "JPEG", "WEBP")}
        for kind, file in pictures.items():
            Image.new("L" if name == "label_map" else "RGB", (9, 7)).save(file, kind)
        return [file.getvalue() for file in pictures.values()]
    return [text.encode() for text in TEXTS.get(name, [])]


def main() -> None:
    """Fuzz the target that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        print("Targets: " + ", ".join(TARGETS))
        return
    name = sys.argv.pop(1)
    target = TARGETS[name]

    def once(data: bytes) -> None:
        try:
            target(data)
        except VocabsegError as error:
            assert str(error).splitlines() == [str(error)], error  # noqa: PT017

    if all(argument.startswith("-") for argument in sys.argv[1:]):
        for number, seed in enumerate(seeds(name)):
            written(seed, f"seeds/{number}")
        sys.argv.append(str(SCRATCH / "seeds"))
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
