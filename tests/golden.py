"""Golden values of the published method: arrays and their description, by the name of the case."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
_REFERENCE = REPOSITORY.parent / "shared" / "reference"
FOLDERS = (REPOSITORY / "tests" / "data" / "golden", _REFERENCE / "golden", _REFERENCE / "ovseg" / "golden")


def load_golden(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name and the decoded `meta` of a golden; skips the test where neither folder has it."""
    for folder in FOLDERS:
        path = folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as file:
                arrays = {key: file[key] for key in file.files if key != "meta"}
                meta = json.loads(bytes(file["meta"]))
                return arrays, _described(arrays, meta) if "classes_used" in meta else meta
    pytest.skip(f"golden {name}.npz is neither in tests/data/golden nor in the reference material")


def _described(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, Any]:
    """The `meta` of one of OVSeg's goldens in the form of the others': one image, and no class counts as seen."""
    padded = [-(-size // 32) * 32 for size in arrays["resized_0"].shape[1:]]
    own = {"classes": meta["classes_used"], "trainable_flag": None, "images": [meta["photo"]], "padded": padded}
    return {**meta, **own}
