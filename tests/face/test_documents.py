"""What the documents and --help tell a user to type works as it is written."""

import json
import re
import shlex
import shutil
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

import vocabseg
from tests.reference_cases import shapes
from vocabseg import cli
from vocabseg.benchmarks.scenes.files import write_scenes
from vocabseg.runtime.bundle.folder import demo_folder
from vocabseg.video.muxer import VideoWriter

APP = cli.application()
ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Options that keep a run short; they change none of those that a document gives.
SHORTER = {"calibrate": "--precision int8 --count 32 --limit 2", "batch": "--workers 1"}
# What is not run here, and why.
ELSEWHERE = {
    "pip install": "the packages are installed already; that the extras exist has a test of its own",
    "python -m pytest": "this is one of its tests",
    "--device cuda": "needs an NVIDIA GPU",
    "cuda:": "needs an NVIDIA GPU",
    "ovseg": "OVSeg's networks take long to export; tests/export/test_ovseg.py does it",
    "MobileCLIP2": "needs its weights; tests/export/model/test_open_clip_models.py exports it",
    "SigLIP2": "needs its weights; tests/export/model/test_open_clip_models.py exports it",
    "vocabseg demo": "runs until it is stopped; tests/web starts it",
    "rtsp://": "needs a camera",
    "segment 0 ": "needs a camera",
    "vocabseg serve": "runs until it is stopped; tests/serving starts it",
    "vocabseg.client": "needs a server; tests/serving has one",
    "--data-dir": "needs a published data set",
    "::openai": "downloads weights; tests/export/test_any_proposals.py exports a CLIP of its own",
    "proposals.adapters": "needs a network of another library; tests/export/test_adapters.py makes some",
    "printf": "makes a request for a server; tests/serving has one",
    "curl": "needs a server; tests/serving has one",
}


class Written(NamedTuple):
    """A command or a program, and the document and line where it stands."""

    text: str
    place: str

    @property
    def reason(self) -> str:
        """Why it is not run here, or ""."""
        return next((reason for words, reason in ELSEWHERE.items() if words in self.text), "")


def fenced(document: Path, language: str) -> Iterator[Written]:
    """The blocks of a language, and for bash those that are only indented, too."""
    text = document.read_text(encoding="utf-8")
    pattern = rf"^```{language}\n(.*?)^```"
    if language == "bash":
        pattern += r"|((?:^    (?:vocabseg|pip) [^\n]*\n)+)"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        yield Written(match[0], f"{document.name}:{text[: match.start()].count(chr(10)) + 1}")


def commands(document: Path) -> Iterator[Written]:
    """The lines of the blocks, joined where a backslash ends them, without comments."""
    for block, place in fenced(document, "bash"):
        lines = re.sub(r"\\\n", " ", block).splitlines()
        for line in lines:
            words = shlex.split(line, comments=True)
            if words and not words[0].startswith("```"):
                yield Written(shlex.join(words), place)


def mentioned() -> Iterator[Written]:
    """Every whole command of this package: in blocks, in running text, and in the verbs' examples."""
    for document in DOCUMENTS:
        yield from (one for one in commands(document) if one.text.startswith("vocabseg "))
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(r"`(vocabseg [a-z]+ [^`]*)`", text):
            if "..." not in match[1]:
                yield Written(" ".join(match[1].split()), document.name)
    for command in APP.registered_commands:
        for match in re.finditer(r"vocabseg [a-z]+[^\n]*", command.epilog or ""):
            yield Written(match[0], f"{command.name} --help")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and working folder with everything that the documents take for granted, but no bundle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VOCABSEG_CACHE_DIR", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("train_demo"))
    scenes = write_scenes(tmp_path, 2)
    for name in ("photo.jpg", "photos/a.jpg", "raw/deep/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(scenes[0]).convert("RGB").save(tmp_path / name)
    (tmp_path / "masks").mkdir()
    width, height = Image.open(scenes[0]).size
    left = {"size": [height, width], "counts": [0, height * (width // 2), height * (width - width // 2)]}
    for name in ("sam.json", "masks/a.json"):
        (tmp_path / name).write_text(json.dumps([{"segmentation": left}]))
    with (tmp_path / "clip.mp4").open("wb") as file:
        writer = VideoWriter(file, tmp_path / "clip.mp4", 25)
        for number in range(3):
            writer.write(np.asarray(Image.open(scenes[0]).convert("RGB").resize((96, 96))), number / 25)
        writer.close()
    (tmp_path / "names.txt").write_text("red disc\nblue square\n")
    (tmp_path / "list.csv").write_text("path\nraw/deep/b.jpg\n")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "one.tar", "w") as archive:
        archive.add(tmp_path / "photo.jpg", "c.jpg")
    for name in ("DIR", "BUNDLE", "results", "old", "new", "datasets"):
        (tmp_path / name).mkdir()
    for name in ("old.json", "new.json", "old/bench.json", "new/bench.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def write_checkpoint(path: Path) -> None:
    """Small random weights in the layout of the published checkpoint with a deep stem and a learned prompt."""
    torch = pytest.importorskip("torch", reason="exporting needs PyTorch")
    from vocabseg.export.checkpoint.random_weights import SIGNAL_TOKENS, fill

    wanted = dict(shapes("c2_r101c_tiny16_single"))
    width = wanted["clip_adapter.clip_model.token_embedding.weight"][1]
    wanted["clip_adapter.prompt_learner.prefix_prompt"] = (16, width)
    wanted |= {f"clip_adapter.prompt_learner.{name}": (1, width) for name in SIGNAL_TOKENS}
    torch.save({"model": {key: torch.from_numpy(array) for key, array in fill(wanted).items()}}, path)


def run(words: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return stop.value.code


@pytest.mark.parametrize("document", DOCUMENTS, ids=[document.stem for document in DOCUMENTS])
def test_every_command_of_a_block_runs(document: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if document.name == "README.md":
        write_checkpoint(folder / "model_final.pth")  # the README makes the bundle itself
    else:
        shutil.copytree(demo_folder(), folder / "my-bundle")
    if document.name == "precision.md":
        write_scenes(folder / "photos", 40)  # a calibration needs at least 32
    for command in commands(document):
        if command.reason:
            print(f"not run: {command.text} ({command.place}): {command.reason}")
            continue
        words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in shlex.split(command.text)]
        assert words[0] == "vocabseg", command
        code = run([*words[1:], *shlex.split(SHORTER.get(words[1], ""))])
        assert code == 0, f"{command}: {capsys.readouterr().err}"
    for program in fenced(document, "python"):
        if program.reason:
            print(f"not run: the program at {program.place}: {program.reason}")
            continue
        if document.name != "README.md":
            pytest.importorskip("supervision", reason="to_detections() needs it")
        exec("\n".join(program.text.splitlines()[1:-1]), {"__name__": "document"})


@pytest.mark.parametrize("written", list(dict.fromkeys(mentioned())), ids=str)
def test_every_command_has_only_options_that_exist(written: Written, folder: Path) -> None:
    shutil.copytree(demo_folder(), folder / "my-bundle")
    for name in ("model_final.pth", "FILE"):
        (folder / name).write_bytes(b"weights")
    words = [str(Path(word).expanduser()) if word.startswith("~") else word for word in shlex.split(written.text)]
    words = [found for word in words for found in (glob(word) if "*" in word else [word])]
    command = typer.main.get_command(APP).commands[words[1]]  # type: ignore[attr-defined]
    command.make_context(words[1], words[2:])


def glob(pattern: str) -> list[str]:
    return [str(path) for path in Path().glob(pattern)] or [pattern]


def test_every_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert "vocabseg[" not in text, f"{document.name}: the package is in no index"
        for match in re.finditer(r"pip install (?:-e )?\"?\.\[([\w,]+)\]", text):
            assert set(match[1].split(",")) <= extras.keys(), match[0]


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/api.md").read_text()
    homes = re.findall(r"^::: ([\w.]+)", page, re.MULTILINE)
    for name in vocabseg.__all__:
        value = getattr(vocabseg, name)
        assert value.__module__ in homes or f"{value.__module__}.{name}" in homes, f"docs/api.md lacks vocabseg.{name}"
