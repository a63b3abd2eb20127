"""The notebook runs as it is written, and shows what its text says."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_notebook() -> None:
    pytest.importorskip("ipykernel", reason="running a notebook needs ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="running a notebook needs nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells), "clear all outputs, then save"
    runner = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}})
    runner.execute()
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    values = [cell.outputs[-1].get("data", {}) if cell.outputs else {} for cell in cells]
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(value["image/png"]))) for value in values if "image/png" in value
    ]
    assert [picture.height for picture in pictures] == [360] * 4
    assert all(picture.width > 480 for picture in pictures)  # with a legend
    assert "['cloudy sky', 'orange arrow', 'cloudy sky']" in values[2]["text/plain"]
    explained = next(text for text in shown if text)
    assert explained.startswith("orange arrow ['orange arrow ")
    assert "mask 8: weight 1.00, votes 0.9" in explained
    segments = next(value["text/plain"] for value in values if "'purple ring', True" in value.get("text/plain", ""))
    assert segments.count("(") == 6
    assert "('water', False" in segments
    assert values[-1]["text/plain"] == "['labels.png', 'overlay.png', 'panoptic.json', 'result.json']"
