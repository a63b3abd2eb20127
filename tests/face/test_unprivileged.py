"""A user without a home or without rights: a warning or one line, never a crash."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from vocabseg.runtime.bundle.folder import demo_folder

# Everything is imported by a first run, since the interpreter's own files may be closed to the other user.
SCRIPT = """
import os, sys
from vocabseg.cli import main

def run(*arguments):
    try:
        main(list(arguments))
    except SystemExit as stop:
        return stop.code

os.environ["VOCABSEG_CACHE_DIR"] = sys.argv[1]
image, output = sys.argv[2:4]
assert run("segment", image, "-q", "-c", "sky, water", "-o", output) == 0
if os.getuid() == 0:
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
for name in ("HOME", "VOCABSEG_CACHE_DIR", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
os.environ.update(word.split("=", 1) for word in sys.argv[4].split())
print("code", run("segment", image, "-q", "-c", "sky, water", "-o", output, *sys.argv[5:]))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="vocabseg-test-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture
def run(open_folder: Path) -> Run:
    """`segment`, with variables "NAME=VALUE ..." and further options, by a user whose id no list of users has."""
    image = open_folder / "image.png"
    Image.new("RGB", (96, 64), (150, 190, 240)).save(image)

    def run(variables: str, *options: object) -> subprocess.CompletedProcess[str]:
        output = open_folder / f"out-{os.urandom(4).hex()}.png"
        command = [sys.executable, "-c", SCRIPT, open_folder / "cache", image, output, variables, *options]
        return subprocess.run([*map(str, command)], capture_output=True, text=True)

    return run


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user that no list of users has")
def test_a_user_without_a_home_has_no_cache(run: Run) -> None:
    found = run("")
    assert found.stdout.endswith("code 0\n"), found.stderr
    assert "nothing is cached: this user has no home folder" in found.stderr


@pytest.mark.parametrize("place", ["home", "nowhere"])
def test_a_home_that_may_not_be_entered_has_no_cache(run: Run, open_folder: Path, place: str) -> None:
    home = open_folder / "home"
    home.mkdir(mode=0o000)
    found = run(f"HOME={home if place == 'home' else '/nonexistent'}")
    home.chmod(0o700)
    assert found.stdout.endswith("code 0\n"), found.stderr
    assert "the cache of text embeddings" in found.stderr
    assert "cannot be used" in found.stderr


@pytest.mark.parametrize(
    "name", [".", "manifest.json", "proposal.onnx", "image_encoder.onnx.data", "tokenizer.json", "tensors.safetensors"]
)
def test_a_bundle_that_may_not_be_read_is_told_in_one_line(run: Run, open_folder: Path, name: str) -> None:
    shutil.copytree(demo_folder(), open_folder / "outer" / "bundle")
    closed = open_folder / "outer" / "bundle" / name if name != "." else open_folder / "outer"
    closed.chmod(0o000)
    found = run("VOCABSEG_CACHE_DIR=", "--bundle", open_folder / "outer" / "bundle")
    closed.chmod(0o700)
    assert found.stdout.endswith("code 2\n"), found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert "permission denied; check its access rights" in found.stderr


def test_an_output_folder_that_may_not_be_entered_is_told_in_one_line(run: Run, open_folder: Path) -> None:
    (open_folder / "closed").mkdir(mode=0o000)
    found = run("VOCABSEG_CACHE_DIR=", "--output", open_folder / "closed" / "out.png")
    (open_folder / "closed").chmod(0o700)
    assert found.stdout.endswith("code 2\n"), found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert "permission" in found.stderr
