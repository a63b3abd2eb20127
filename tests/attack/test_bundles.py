"""Bundles of strangers: whatever is wrong with one is told in a line, and nothing is read or written elsewhere."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.attack.broken import edit, refused
from vocabseg.cli import main
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.bundle.manifest import file_record, write_manifest
from vocabseg.runtime.errors import BundleError
from vocabseg.runtime.text.tokenizer import Tokenizer

DEEP = "[" * 100_000 + "]" * 100_000


NAMES = ["../../x", "/tmp/x", "a/b", "a\\b", "..", "", "a b", "a\n", "a\0", "\x1b[2J", "x" * 65, "ä"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_become_files_are_plain(folder: Path, name: str) -> None:
    pristine = (folder / "manifest.json").read_text()
    record = json.loads(pristine)["graphs"]["proposal"]
    for place, value in (
        ("graphs.text_encoder", (name,)),
        ("variants", {name: {"proposal": record}}),
        ("variants", {"float16": {name: record}}),
        ("prompts.query.graph", name),
    ):
        edit(folder, place, value)
        refused(folder)
        (folder / "manifest.json").write_text(pristine)
    assert open_bundle(folder)


def test_nothing_is_written_that_would_not_be_read(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    manifest = open_bundle(folder).manifest
    for change in ({"name": "\x1b[2J"}, {"variants": {"../x": {"proposal": manifest.graphs["proposal"]}}}):
        with pytest.raises(BundleError, match="nothing was changed"):
            write_manifest(msgspec.structs.replace(manifest, **change), folder)
        assert (folder / "manifest.json").read_bytes() == before


def test_build_writes_nothing_beside_the_bundle(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (demo / "manifest.json").read_text()
    for name in ("../../escaped", str(demo.parent / "escaped")):
        edit(demo, "graphs.proposal", (name,))
        before = sorted(demo.parent.rglob("*"))
        assert verdict(["build", str(demo)], capsys)
        assert sorted(demo.parent.rglob("*")) == before
        (demo / "manifest.json").write_text(text)


def verdict(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of input that it refuses, in one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert "fault in vocabseg" not in said
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    return said


VALUES = [
    ("input.divisor", 0),
    ("input.divisor", 2**31),
    ("input.std", [0, 1, 1]),
    ("input.std", [1e-320, 1, 1]),
    ("input.mean", [1e30, 0, 0]),
    ("input.min_size", 10**12),
    ("input.max_size", 1e30),
    ("region.std", [0, 1, 1]),
    ("region.crop_size", 10**9),
    ("region.expand_ratio", 1e30),
    ("region.expand_ratio", 0),
    ("ensemble.temperature", 1e300),
    ("ensemble.weight", -1e300),
    ("prompts.query.prefix_ids", [1e30]),
    ("prompts.query.suffix_ids", [-1]),
    ("prompts.query.suffix_ids", [2**63]),
    ("format", 1e30),
    ("graphs.proposal.bytes", 1e30),
    ("graphs.proposal.bytes", -1),
    ("graphs.proposal.inputs.0.shape", [1, 3, 10**30, 4]),
    ("graphs.proposal.inputs.0.dtype", "bfloat16"),
    ("graphs.image_encoder.inputs.0.dtype", "float8_e4m3fn"),
    ("graphs.text_encoder.inputs.0.dtype", "float32"),
    ("graphs.proposal.inputs.0.name", "pixels"),
    ("graphs.proposal.outputs.0.name", "masks"),
    ("graphs.proposal.outputs", []),
    ("graphs.proposal.outputs.0.shape", ["batch", 6, "height/4", "width/4"]),
    ("graphs.proposal.outputs.0.shape", ["batch", 5, "height/4"]),
    ("graphs.proposal.outputs.1.shape", ["batch", 5, "width"]),
    ("graphs.image_encoder.inputs.0.shape", ["batch", 3, 336, 336]),
    ("graphs.image_encoder.outputs.0.shape", ["batch", 6]),
    ("graphs.text_encoder.outputs.0.shape", ["batch", 0]),
    ("graphs.text_encoder.file", "a\0b.onnx"),
    ("graphs.text_encoder.file", "x" * 5000 + ".onnx"),
    ("graphs.text_encoder.file", "\x1b]0;title\x07.onnx"),
    ("graphs.text_encoder.file", "."),
    ("graphs.text_encoder.file", "manifest.json"),
    ("graphs.text_encoder.external", [{"file": "", "bytes": 1, "sha256": ""}]),
    ("name", "\x1b[2J\x1b[31m"),
]


@pytest.mark.parametrize(("place", "value"), VALUES, ids=[f"{place}={str(value)[:24]!a}" for place, value in VALUES])
def test_values_out_of_range_are_told(folder: Path, place: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder, place, value)
    refused(folder)
    verdict(["segment", "x.png", "-b", str(folder), "-c", "cat"], capsys)


def test_escapes_are_shown_and_not_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = verdict(["segment", "x.png", "-b", str(tmp_path / "\x1b[2J\u202ered"), "-c", "cat"], capsys)
    assert "\\x1b[2J\\u202ered" in said


@pytest.mark.parametrize("text", [DEEP, '{"format": 1, "x": ' + DEEP + "}", '{"format": 1' + " " * (65 << 20) + "}"])
def test_a_deep_or_endless_manifest_is_told(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    assert "manifest" in refused(folder)


def test_a_manifest_is_a_regular_file(folder: Path) -> None:
    path = folder / "manifest.json"
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p), lambda p: os.symlink(p, p), sparse):
        path.unlink()
        make(path)
        assert "manifest" in refused(folder)
        if path.is_dir():
            path.rmdir()
            path.write_text("")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("name", ["proposal.onnx", "proposal.onnx.data", "tokenizer.json", "tensors.safetensors"])
def test_a_listed_file_is_a_regular_one_inside(folder: Path, name: str) -> None:
    path = folder / name
    (folder.parent / name).write_bytes(path.read_bytes())
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink(folder.parent / name, p), lambda p: os.symlink(p, p)):
        path.unlink()
        make(path)
        assert name in refused(folder)
        if path.is_dir():
            path.rmdir()
            path.write_text("")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F128", "F32"])
def test_tensors_that_numpy_lacks_are_told(folder: Path, dtype: str) -> None:
    shape = [1, 2] if dtype != "F32" else [2**40, 2**40]
    head = json.dumps({"query.non_object_embedding": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()
    (folder / "tensors.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"\0" * 4)
    record = file_record(folder, "tensors.safetensors")
    edit(folder, "files", {
        "a": {"file": "tensors.safetensors", "bytes": record.bytes, "sha256": record.sha256},
        "b": {"file": "tokenizer.json", "bytes": 2, "sha256": file_record(folder, "tokenizer.json").sha256},
    })  # fmt: skip
    assert "tensors.safetensors" in refused(folder)


@pytest.mark.parametrize("text", [DEEP, "{}", '{"pre_tokenizer": ' + DEEP + "}", "\ud800"])
def test_a_tokenizer_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_tokenizer_with_ids_beyond_a_tensor_is_told(demo: Path) -> None:
    document = json.loads((demo / "tokenizer.json").read_text())
    for change in ({"vocab": {**document["model"]["vocab"], "x": 10**30}}, {"vocab": {"x": -1}}):
        wrong = {**document, "model": {**document["model"], **change}}
        (demo / "tokenizer.json").write_text(json.dumps(wrong))
        with pytest.raises(BundleError):
            Tokenizer.from_file(demo / "tokenizer.json")
