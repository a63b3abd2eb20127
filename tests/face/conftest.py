"""Small pictures, and `vocabseg segment` in this process."""

from pathlib import Path

import pytest
from PIL import Image

from vocabseg.benchmarks.scenes.world import render_scene
from vocabseg.cli import main


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a.png, b.png and sub/c.png; the working folder is the one above."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render_scene(3, "test", number, size=(96, 120), objects=2).image).save(folder / name)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["segment", *map(str, arguments)])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
