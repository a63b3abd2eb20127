"""Results that took long, saved in a file by name, so that a stopped run does not compute them again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vocabseg.runtime.files import atomic_write

Found = TypeVar("Found")


class Journal:
    """Values by name in a JSON file, for one identity: what was saved for another is dropped."""

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.values: dict[str, Any] = {}
        try:
            content = json.loads(path.read_text())
            if content["identity"] == self.identity:
                self.values = content["values"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a file that is missing, damaged or not ours is replaced

    def recall(self, name: str, kind: type[Found], compute: Callable[[], Found]) -> Found:
        """The saved value of type `kind`, or else the result of `compute`, which is then saved."""
        if name in self.values:
            return msgspec.convert(self.values[name], kind)
        found = compute()
        self.values[name] = msgspec.to_builtins(found)
        with atomic_write(self.path) as file:
            file.write(json.dumps({"identity": self.identity, "values": self.values}, indent=1).encode())
        return found
