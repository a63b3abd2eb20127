"""A command opens its bundle, and hashes the files in it, once."""

import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import pytest

from vocabseg.benchmarks.scale.processes import write_images
from vocabseg.cli import main
from vocabseg.runtime.bundle import folder
from vocabseg.runtime.bundle.folder import demo_folder

COMMANDS = {
    "segment": ["segment", "photos/0000.png", "-b", "bundle", "-o", "out.png"],
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
    opened: Counter[Path] = Counter()
    hashed: Counter[Path] = Counter()
    read_manifest, sha256_file = folder.read_manifest, folder.sha256_file
    monkeypatch.setattr(folder, "read_manifest", lambda path: opened.update([path]) or read_manifest(path))
    monkeypatch.setattr(folder, "sha256_file", lambda path: hashed.update([path]) or sha256_file(path))
    with pytest.raises(SystemExit) as stop:
        main(COMMANDS[verb])
    assert stop.value.code == 0
    assert sum(opened.values()) == 1, opened
    assert set(hashed.values()) == {1}, hashed
    assert len(hashed) > 4
