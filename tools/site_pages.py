"""The hook of mkdocs.yml: pages stand in the site where they stand in the repository, so that links between them work.

The documents of docs/, those beside it that they point to, and the results of benchmarks are the site; `docs/api.md` is
filled from docstrings. Nothing else is copied or rewritten.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "LICENSE", "docs/*", "benchmarks/results/*", "examples/*.*", "src/vocabseg/demo/README.md")


def _nav() -> list[dict[str, Any]]:
    """The table of contents: titles are those of the pages."""
    guides = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "api.md")
    results = sorted(page.name for page in (ROOT / "benchmarks" / "results").glob("*.md"))
    return [
        {"vocabseg": "README.md"},
        {"Guides": [f"docs/{name}" for name in guides]},
        {"Python": ["docs/api.md"]},
        {"Measured": [f"benchmarks/results/{name}" for name in reversed(results)]},
        {"Project": ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]},
    ]


def on_config(config: Any) -> Any:
    config.nav = _nav()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Each page under its path from the repository's root."""
    own = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(ROOT / "docs")]
    found = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()})
    pages = [File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in found]
    return Files([*own, *pages])
