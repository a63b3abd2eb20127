"""Results that took long, kept in a file under their names, so that a stopped run does not do them again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vocabseg.runtime.files import atomic_write

Found = TypeVar("Found")


class Notebook:
    """Values by name in a JSON file; all of them belong to one identity, and those of another are dropped."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]):
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.values: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                content = json.loads(path.read_text())
                if content["identity"] == self.identity:
                    self.values = content["values"]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # a file that is damaged, or none of ours, is replaced

    def recall(self, name: str, kind: type[Found], compute: Callable[[], Found]) -> Found:
        """The value under a name, or else what `compute` gives, which is then kept. `kind` is its type."""
        if name in self.values:
            return msgspec.convert(self.values[name], kind)
        found = compute()
        self.values[name] = msgspec.to_builtins(found)
        if self.path is not None:
            with atomic_write(self.path) as file:
                file.write(json.dumps({"identity": self.identity, "values": self.values}, indent=1).encode())
        return found
