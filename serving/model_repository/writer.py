"""A bundle -> a model repository for Triton: configuration, model file, the bundle itself, and how to run it."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from vocabseg.runtime.bundle.folder import Bundle, listed_files
from vocabseg.runtime.bundle.manifest import MANIFEST, read_manifest, write_manifest
from vocabseg.runtime.bundle.plans import ENGINES
from vocabseg.runtime.errors import ConfigurationError, OutputError, VocabularyError
from vocabseg.runtime.files import whole_folder
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.model_repository.dashboard import dashboard
from vocabseg.serving.model_repository.model_configuration import (
    WARM_UP_FILE,
    Serving,
    model_configuration,
    warm_up_classes,
)
from vocabseg.serving.model_repository.production import caddyfile, compose
from vocabseg.serving.model_repository.readme import readme
from vocabseg.serving.protocol import PACKAGE_PATH, NamedVocabulary

MODEL_FILE = f'''"""The model that Triton's Python backend runs; all of it is in the package vocabseg."""

import os
import sys

if os.environ.get("{PACKAGE_PATH}"):
    sys.path.insert(0, os.environ["{PACKAGE_PATH}"])

from vocabseg.serving.model import TritonPythonModel  # noqa: E402, F401
'''


def write_repository(
    bundle: Bundle,
    target: Path,
    serving: Serving,
    named: Mapping[str, Vocabulary] | None = None,
    beside: bool = False,
) -> Path:
    """Write the repository to a temporary folder and rename it to `target`, which must be missing or empty.

    Requests can name the `named` vocabularies; the bundle's own, if it has one, is for requests without names. What the
    bundle's manifest lists and its engines are copied, with the manifest as it is in memory; with `beside`, unless the
    two differ, its folder becomes a link to the original, which must then stay where it is. Returns the model's folder.
    Raises OutputError where it cannot be written, ConfigurationError for a name that Triton does not take.
    """
    check_target(target, bundle)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", serving.name):
        raise ConfigurationError(f"the model name {serving.name!r}: use letters, digits, '_', '.' and '-'")
    given = named or {}
    with whole_folder(target, "the model repository", lambda: check_target(target, bundle)) as temporary:
        model = temporary / serving.name
        version = model / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL_FILE, encoding="utf-8")
        (version / "vocabularies.json").write_bytes(_vocabularies(bundle, given))
        if beside and read_manifest(bundle.folder / MANIFEST) == bundle.manifest:
            (version / "bundle").symlink_to(bundle.folder.absolute(), target_is_directory=True)
        else:
            _copy_bundle(bundle, version / "bundle")
        (model / "config.pbtxt").write_text(model_configuration(serving), encoding="utf-8")
        (model / "warmup").mkdir()
        (model / "warmup" / WARM_UP_FILE).write_bytes(warm_up_classes())
        (temporary / "README.md").write_text(readme(bundle, serving, given), encoding="utf-8")
        (temporary / "Caddyfile").write_text(caddyfile(serving), encoding="utf-8")
        (temporary / "compose.yaml").write_text(compose(serving), encoding="utf-8")
        (temporary / "grafana.json").write_text(json.dumps(dashboard(serving.name), indent=1) + "\n", encoding="utf-8")
    return target / serving.name


def check_target(target: Path, bundle: Bundle) -> None:
    """Raise OutputError if no repository with the bundle can be written to `target`."""
    if target.resolve().is_relative_to(bundle.folder.resolve()):
        raise OutputError(f"{target} lies in the bundle {bundle.folder}: choose another place")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists already: remove it, or choose another place")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist: create it first")


def _vocabularies(bundle: Bundle, named: Mapping[str, Vocabulary]) -> bytes:
    entries: dict[str, NamedVocabulary] = {}
    own = bundle.manifest.vocabulary
    if own is not None:
        entries[""] = _entry(Vocabulary(own, bundle.manifest.seen))
    entries |= {name: _entry(vocabulary) for name, vocabulary in named.items()}
    return msgspec.json.format(msgspec.json.encode(entries), indent=1)


def _entry(vocabulary: Vocabulary) -> NamedVocabulary:
    if any(vocabulary.examples):
        raise VocabularyError("a served vocabulary cannot have example images: name its classes")
    return NamedVocabulary(**vocabulary.described())


def _copy_bundle(bundle: Bundle, target: Path) -> None:
    """What the manifest lists, the manifest as it was adjusted, and the engines; never what a link leads to outside.

    Copies, no hard links: for onnx, a file with several of them is an attack.
    """
    for name in sorted({record.file for record in listed_files(bundle.manifest)}):
        _copy(bundle.path(name), target / name)
    engines = bundle.path(ENGINES)
    for folder, _, names in () if engines.is_symlink() else os.walk(engines):  # which follows no links further down
        for path in (Path(folder) / name for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                _copy(path, target / path.relative_to(bundle.folder))
    write_manifest(bundle.manifest, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
