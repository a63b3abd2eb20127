"""Showing a picture where the user is: in a notebook, in a terminal, or in the system's image viewer."""

import base64
import io
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console

    from vocabseg.runtime.result.result import Result

# Pictures in notebooks and terminals have at most this many pixels a side: a notebook keeps them in its file.
SIDE = 1200
# Terminals with Kitty's graphics protocol (sw.kovidgoyal.net/kitty/graphics-protocol), and with iTerm2's inline images
# (iterm2.com/documentation-images.html), by TERM_PROGRAM or TERM.
KITTY, ITERM = ("xterm-kitty", "ghostty", "xterm-ghostty"), ("iTerm.app", "WezTerm")
PIECE = 4096  # bytes of base64 in one escape sequence of Kitty's


def png(result: "Result") -> bytes:
    """The picture that `draw` returns as a PNG, made smaller if it has more than SIDE pixels a side."""
    from PIL import Image

    picture = Image.fromarray(result.draw())
    picture.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def show(result: "Result") -> None:
    """Show the picture in the running notebook, in the terminal if standard output is one, or in the image viewer.

    Raises OutputError where there is none of them.
    """
    if _in_notebook():
        from IPython.display import display

        display(result)
    elif sys.stdout.isatty():
        in_terminal(result)
    else:
        from PIL import Image, ImageShow

        if not ImageShow.show(Image.fromarray(result.draw())):
            raise OutputError("no image viewer was found to show the picture with; use result.save('picture.png')")


def in_terminal(result: "Result") -> None:
    """Print the picture: in full where the terminal can, else two pixels a character, and the legend as text."""
    programs = {os.environ.get("TERM_PROGRAM", ""), os.environ.get("TERM", "")}
    if "TMUX" in os.environ:  # which passes neither protocol on
        programs = set()
    if programs.intersection(KITTY):
        data = base64.b64encode(png(result)).decode()
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        for number, piece in enumerate(pieces):
            how = "a=T,f=100," if number == 0 else ""
            sys.stdout.write(f"\x1b_G{how}m={int(number < len(pieces) - 1)};{piece}\x1b\\")
        sys.stdout.write("\n")
    elif programs.intersection(ITERM):
        encoded = png(result)
        sys.stdout.write(f"\x1b]1337;File=inline=1;size={len(encoded)}:{base64.b64encode(encoded).decode()}\a\n")
    else:
        from rich.console import Console

        print_blocks(result, Console())
    sys.stdout.flush()


def print_blocks(result: "Result", console: "Console") -> None:
    """Print the picture as half blocks, two pixels a character, no larger than the console, and the legend below."""
    from PIL import Image
    from rich.text import Text

    from vocabseg.runtime.result.lettering.legend import percentage, printable
    from vocabseg.runtime.result.picture import by_area

    picture = Image.fromarray(result.draw(legend=False, labels=False))
    picture.thumbnail((console.width, 2 * max(4, console.height - 4)), Image.Resampling.BOX)
    pixels = np.asarray(picture)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines = Text(no_wrap=True)
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            lines.append("▀", f"rgb({','.join(map(str, above))}) on rgb({','.join(map(str, below))})")
        lines.append("\n")
    colours = result.categories.palette(len(result.classes)).tolist()
    for index, share in by_area(result.labels, len(result.classes)):
        if index >= 0:
            lines.append("■ ", f"rgb({','.join(map(str, colours[index]))})")
        name = "no mask" if index < 0 else printable(result.classes[index])
        lines.append(f"{name} {percentage(share)}\n")
    console.print(lines, end="")


def _in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    module: Any = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
