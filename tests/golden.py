"""Golden values of the published method: arrays and their description, by the name of the case."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY.parent / "shared" / "reference"
FOLDERS = (REPOSITORY / "tests" / "data" / "golden", REFERENCE / "golden", REFERENCE / "ovseg" / "golden")


def load_golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name and the decoded `meta` of a golden; skips the test where no folder has it."""
    for folder in FOLDERS:
        path = folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as file:
                arrays = {key: file[key] for key in file.files if key != "meta"}
                return arrays, json.loads(bytes(file["meta"]))
    pytest.skip(f"golden {name}.npz is neither in tests/data/golden nor in the reference material")
