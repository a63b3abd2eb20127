"""The limit of an image's pixels can be set wherever images are read: results take 20 bytes of memory for each."""

import struct
from pathlib import Path

import numpy as np
import pytest

from vocabseg.cli import main
from vocabseg.runtime.errors import ImageError
from vocabseg.runtime.images import load_image

# 43 bytes that stand for 14,000 x 14,000 pixels, just within the default limit.
GIF = (
    b"GIF89a" + struct.pack("<HHBBB", 14000, 14000, 0x80, 0, 0) + bytes(6)
    + b"," + struct.pack("<HHHHB", 0, 0, 14000, 14000, 0) + b"\x02\x02\x44\x01\x00;"
)  # fmt: skip


def test_a_small_file_of_a_large_image_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "large.gif").write_bytes(GIF)
    monkeypatch.setenv("VOCABSEG_MAX_PIXELS", "1000000")
    with pytest.raises(ImageError, match="14000 x 14000 pixels, more than the limit of 1 megapixels"):
        load_image(tmp_path / "large.gif")
    with pytest.raises(SystemExit) as stop:
        main(["segment", str(tmp_path / "large.gif"), "-c", "cat", "-o", str(tmp_path / "out.png")])
    assert stop.value.code == 2
    assert "megapixels" in capsys.readouterr().err
    assert load_image(np.zeros((1000, 1000, 3), np.uint8)).shape == (1000, 1000, 3)
    with pytest.raises(ImageError):
        load_image(np.zeros((1000, 1001, 3), np.uint8))
    assert load_image(np.zeros((2, 3, 3), np.uint8), 6).shape == (2, 3, 3)


@pytest.mark.parametrize("setting", ["0", "-1", "1e6", "many", "9" * 5000, "\u0663"])
def test_a_limit_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("VOCABSEG_MAX_PIXELS", setting)
    with pytest.raises(ImageError, match="VOCABSEG_MAX_PIXELS"):
        load_image(np.zeros((2, 3, 3), np.uint8))
