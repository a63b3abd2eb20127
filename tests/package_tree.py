"""The package as an installation has it, put together from the checkout, for tools that read packages from files.

`python tests/package_tree.py FOLDER` makes it; `MYPYPATH=FOLDER mypy` and `PYTHONPATH=FOLDER lint-imports` check it.
"""

import shutil
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def package_tree(folder: Path) -> Path:
    """Copy the Python files of the floors to where pyproject.toml maps them, below `folder`, which is returned."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    shutil.rmtree(folder / "vocabseg", ignore_errors=True)
    for target, source in settings["tool"]["scikit-build"]["wheel"]["packages"].items():
        for path in (REPOSITORY / source).rglob("*.py*"):
            if path.suffix in (".py", ".pyi") or path.name == "py.typed":
                copy = folder / target / path.relative_to(REPOSITORY / source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
    return folder


if __name__ == "__main__":
    print(package_tree(Path(sys.argv[1])))
