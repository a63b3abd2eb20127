"""A command opens its bundle, and hashes the files in it, once."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.bundles import files_hashed
from vocabseg.benchmarks.scale.processes import write_images
from vocabseg.cli import main
from vocabseg.runtime.bundle import folder
from vocabseg.runtime.bundle.folder import demo_folder

COMMANDS = {
    "segment": ["segment", "photos/0000.png", "photos/0001.png", "-b", "bundle", "-o", "out"],
    "batch": ["batch", "photos", "-b", "bundle", "-o", "out", "--threads", "1"],
    "triton": ["triton", "bundle", "-o", "models"],
    "calibrate": ["calibrate", "bundle", "--images", "photos", "--count", "32", "--limit", "2",
                  "--precision", "float16,int8", "-o", "report"],
    "build": ["build", "bundle", "--precision", "fp16"],
}  # fmt: skip


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_bundle_is_opened_and_hashed_once(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb == "batch" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'vocabseg[batch]'")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo_folder(), "bundle")
    write_images(Path("photos"), 40)
    Path("out").mkdir()
    opened: list[Path] = []
    read_manifest = folder.read_manifest
    monkeypatch.setattr(folder, "read_manifest", lambda path: opened.append(path) or read_manifest(path))
    with files_hashed() as hashed, pytest.raises(SystemExit) as stop:
        main(COMMANDS[verb])
    assert not stop.value.code
    assert opened == [Path("bundle/manifest.json")]
    assert set(hashed.values()) == {1}, hashed
    assert len(hashed) > 4
