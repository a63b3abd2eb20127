"""Results where the user is: notebooks, terminals that show pictures, and those that do not."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image, ImageShow
from rich.console import Console

from vocabseg.runtime.errors import OutputError
from vocabseg.runtime.result import display
from vocabseg.runtime.result.colours import class_colours
from vocabseg.runtime.result.result import Result


@pytest.fixture
def result():
    labels = np.zeros((300, 400), np.int32)
    labels[:, 300:] = 1
    return Result(labels, np.ones(labels.shape, np.float32), ["cat", "grass"])


def picture(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_a_notebook_gets_the_picture_and_of_a_large_one_a_smaller(result):
    np.testing.assert_array_equal(picture(result._repr_png_()), result.draw())
    labels = result.labels.repeat(6, 0).repeat(6, 1)
    large = Result(labels, np.ones(labels.shape, np.float32), result.classes)
    assert max(picture(large._repr_png_()).shape) == display.SIDE


@pytest.mark.parametrize(("variable", "program"), [("TERM", "xterm-kitty"), ("TERM_PROGRAM", "iTerm.app")])
def test_terminals_with_pictures_get_the_picture(result, variable, program, monkeypatch, capsys):
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv(variable, program)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    result.show()
    sent = capsys.readouterr().out
    if variable == "TERM":
        pieces = re.findall(r"\x1b_G(.*?);(.*?)\x1b\\", sent)
        assert pieces[0][0] == "a=T,f=100,m=1"
        assert [how[-3:] for how, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
        assert max(len(piece) for _, piece in pieces) <= 4096
        data = "".join(piece for _, piece in pieces)
    else:
        size, data = re.fullmatch(r"\x1b]1337;File=inline=1;size=(\d+):(.*)\a\n", sent).groups()
        assert int(size) == len(base64.b64decode(data))
    np.testing.assert_array_equal(picture(base64.b64decode(data)), result.draw())
    monkeypatch.setenv("TMUX", "1")
    result.show()
    assert "▀" in capsys.readouterr().out


def test_other_terminals_get_half_blocks_and_the_legend(result):
    console = Console(width=40, height=24, color_system="truecolor", force_terminal=True, file=io.StringIO())
    display.print_blocks(result, console)
    *rows, cat, grass = console.file.getvalue().splitlines()
    assert len(rows) == 15  # 40 x 30 pixels
    assert all(row.count("▀") == 40 for row in rows)
    first, last = (";".join(map(str, colour)) for colour in class_colours(2).tolist())
    runs = re.findall(r"\x1b\[38;2;(\d+;\d+;\d+);48;2;(\d+;\d+;\d+)m(▀+)", rows[7])
    cells = [(above, below) for above, below, run in runs for _ in run]
    assert cells[:29] == [(first, first)] * 29
    assert cells[31:] == [(last, last)] * 9
    assert f"38;2;{first}m■" in cat
    assert f"38;2;{last}m■" in grass
    assert re.sub(r"\x1b\[[\d;]*m", "", cat + grass) == "■ cat 75%■ grass 25%"


def test_elsewhere_the_image_viewer_opens(result, monkeypatch, capsys):
    shown, viewer = [], iter((True, False))
    monkeypatch.setattr(ImageShow, "show", lambda picture: shown.append(np.asarray(picture)) or next(viewer))
    result.show()  # the captured standard output is no terminal
    np.testing.assert_array_equal(shown[0], result.draw())
    assert capsys.readouterr().out == ""
    with pytest.raises(OutputError, match="no image viewer was found"):
        result.show()
