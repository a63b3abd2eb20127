"""Recipes, in TOML: which parts of a graph stay in float32 when the rest is rewritten in a lower precision, and why.

precision = "float16"

[proposal]                                 # a graph of the bundle; [text] covers every graph named ..text..
float32_outputs = ["mask_logits"]          # every other float input and output takes the lower precision
made_for = "6f5e..."                       # optional: the digest of the only graph that this part fits

[[proposal.keep]]
operation = "Sin"                          # every node of a type, or node = "node_MatMul_3", or node = "*layers.4*"
feeding = true                             # and everything that these nodes are computed from
reason = "positions of up to 6.28 with steps of 0.01 need more than eleven bits"
"""

import fnmatch
import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.files import atomic_write

FOLDER = Path(__file__).parent
TEXT = "text"


class Keep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Nodes that stay in float32: by operation type, by name (or a pattern with * and ?), or both at once."""

    operation: str | None = None
    node: str | None = None
    feeding: bool = False
    reason: str

    def __post_init__(self) -> None:
        if self.operation is None and self.node is None:
            raise ValueError("an entry of keep needs an operation or a node")
        if not self.reason.strip():
            raise ValueError("an entry of keep needs a reason")

    def covers(self, operation: str, node: str) -> bool:
        """Whether the entry applies to a node of this type and name."""
        named = self.node is None or fnmatch.fnmatchcase(node, self.node)
        return named and self.operation in (None, operation)


class GraphRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stays in float32 in one graph: nodes, inputs and outputs."""

    made_for: str | None = None
    float32_inputs: list[str] = []
    float32_outputs: list[str] = []
    keep: list[Keep] = []


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What stays in float32 in each graph of a bundle when the rest is rewritten in `precision`."""

    precision: str = "float16"
    graphs: dict[str, GraphRecipe] = {}

    def graph(self, name: str, digest: str | None = None) -> GraphRecipe:
        """The part for a graph by its name; empty if the recipe has none.

        Raises ConfigurationError if it was made for another graph than the one with this digest.
        """
        found = self.graphs.get(name)
        if found is None:
            found = self.graphs.get(TEXT, GraphRecipe()) if TEXT in name else GraphRecipe()
        if found.made_for is not None and digest is not None and found.made_for != digest:
            raise ConfigurationError(
                f"the recipe's part for {name} was made for the graph {found.made_for[:12]}, not for {digest[:12]}: "
                "calibrate this bundle (vocabseg calibrate)"
            )
        return found


def default_recipe(precision: str = "float16") -> Recipe:
    """The recipe that comes with the package; ConfigurationError if there is none for the precision."""
    path = FOLDER / f"{precision}.toml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))
        raise ConfigurationError(f"there is no recipe for {precision!r}, only for {known}")
    return read_recipe(path)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file; raises ConfigurationError if it is not valid."""
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"cannot read the recipe {path}: {reason}") from None
    precision = document.pop("precision", None)
    try:
        return msgspec.convert({"precision": precision, "graphs": document}, Recipe)
    except msgspec.ValidationError as error:
        where = str(error).replace("$.graphs", "$")
        raise ConfigurationError(
            f"the recipe {path} is not valid: {where}; see vocabseg/export/half/recipe.py"
        ) from None


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as TOML, in a fixed order, so that two can be compared line by line; OutputError if that fails."""
    lines = [f"precision = {_toml(recipe.precision)}"]
    for name, graph in sorted(recipe.graphs.items()):
        fields = msgspec.to_builtins(graph)
        entries = fields.pop("keep", [])
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in fields.items())]
        for entry in entries:
            lines += ["", f"[[{name}.keep]]", *(f"{key} = {_toml(value)}" for key, value in entry.items())]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _toml(value: Any) -> str:
    """A TOML value: strings, booleans and lists of them are written as in JSON."""
    return json.dumps(value, ensure_ascii=False)
