"""What all reports need: their folder, and tables in Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vocabseg.runtime.errors import OutputError


def make_folder(folder: Path) -> None:
    """Make a folder unless it is there; raises OutputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot make the folder {folder}: {reason}; choose another place") from None


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
