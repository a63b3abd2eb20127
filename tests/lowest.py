"""The lower bounds of pyproject.toml, as requirements for pip: `python tests/lowest.py EXTRA ... > lowest.txt`.

Without extras, those of all but "gpu", whose packages need a GPU's host.
"""

import re
import sys
import tomllib
from pathlib import Path

# They look at the sources and run none of them, and need newer packages than users do.
TOOLS = ("import-linter", "mypy", "pybind11-stubgen", "ruff")


def lowest(extras: list[str]) -> list[str]:
    """ "package==version" for what the package and these extras ask for.

    Raises ValueError for a requirement without a lower bound, or with different ones.
    """
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(one for extra in extras or optional.keys() - {"gpu"} for one in optional[extra]),
    ]
    found: dict[str, str] = {}
    for requirement in wanted:
        match = re.fullmatch(r"([\w.-]+(?:\[[\w,]+\])?)(?:>=|==)([\w.]+)(?:,<[\w.]+)?", requirement)
        if match is None or found.setdefault(match[1], match[2]) != match[2]:
            raise ValueError(f"{requirement!r}: write one lower bound, and the same one in every extra")
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in TOOLS]


if __name__ == "__main__":
    print("\n".join(lowest(sys.argv[1:])))
