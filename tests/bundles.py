"""Exported bundles of the network goldens, each set of weights exported once.

They are kept for the length of the test run, or longer in $VOCABSEG_TEST_CACHE, named after the shapes of
the weights, the prompts and the exporter's code.
"""

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from tests.golden import REPOSITORY, load_golden
from tests.reference_cases import case_configuration, case_model, shapes
from vocabseg.export import bundle as bundle_writer
from vocabseg.export.bundle import export_bundle
from vocabseg.export.configuration import Configuration
from vocabseg.export.model.maskformer import ProposalNetwork
from vocabseg.runtime.bundle import folder
from vocabseg.runtime.bundle.folder import is_demo, open_bundle
from vocabseg.runtime.bundle.manifest import MANIFEST, Manifest, write_manifest
from vocabseg.runtime.bundle.sections import RegionSpec


def bundle_for_case(name: str, proposal: Callable[[], ProposalNetwork] | None = None) -> Path:
    """The bundle of a network golden, with the case's weights and settings; skips where the golden is not there.

    With `proposal` another proposal network is in its place, for tests that start from the golden's own proposals.
    """
    configuration = case_configuration(load_golden(name)[1])
    key = _key(name, configuration) + (proposal.__name__ if proposal else "")
    weights = cache_folder() / f"weights-{key}"
    with _alone(key):
        if not (weights / MANIFEST).is_file():
            # The comparison of graph and module has tests of its own, and the goldens are a harder one.
            small = msgspec.structs.replace(configuration.input, min_size=128, max_size=512)
            quick = msgspec.structs.replace(configuration, input=small)
            with mock.patch.object(bundle_writer, "check_graph", return_value={}):
                model = case_model(name)[3]
                model = model if proposal is None else replace(model, proposal=proposal())
                export_bundle(model, quick, weights, name=name)
    settings = _settings(configuration, open_bundle(weights, verify=False).manifest)
    digest = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:12]
    return copy_bundle_with(weights, cache_folder() / f"{name}-{key}-{digest}", name=name, **settings)


@contextlib.contextmanager
def files_hashed() -> Iterator[Counter[Path]]:
    """How often each file is hashed meanwhile in order to open a bundle, in this process."""
    counts: Counter[Path] = Counter()

    def count(path: Path, real: Any = folder.sha256_file) -> str:
        counts[path] += 1
        return str(real(path))

    with mock.patch.object(folder, "sha256_file", count):
        yield counts


def copy_bundle_with(bundle: Path, folder: Path, **changes: Any) -> Path:
    """A bundle that shares its files with another (as hard links) and differs in entries of the manifest.

    Links touch the files, and who reads them just then reads again, up to three times: give a folder that is made once.
    Files of the demo model, which is part of the package, are copied: onnx refuses to read what has hard links.
    """
    if (folder / MANIFEST).is_file():
        return folder
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    for path in bundle.rglob("*"):
        target = temporary / path.relative_to(bundle)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif path.name != MANIFEST:
            (shutil.copyfile if is_demo(bundle) else os.link)(path, target)
    manifest = open_bundle(bundle, verify=False).manifest
    write_manifest(msgspec.structs.replace(manifest, **changes), temporary)
    try:
        os.replace(temporary, folder)
    except OSError:  # another process of the test run was first
        shutil.rmtree(temporary)
    return folder


@contextlib.contextmanager
def _alone(key: str) -> Iterator[None]:
    """Processes of one test run that share the cache wait here for each other's export."""
    with open(cache_folder() / f"{key}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@lru_cache(maxsize=1)
def cache_folder() -> Path:
    """Where the bundles are kept."""
    chosen = os.environ.get("VOCABSEG_TEST_CACHE")
    if chosen:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        return Path(chosen)
    folder = Path(tempfile.mkdtemp(prefix="vocabseg-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _settings(configuration: Configuration, manifest: Manifest) -> dict[str, Any]:
    """What of a configuration stands in the manifest alone, and in no graph."""
    own = {name: getattr(manifest.region, name) for name in ("mean", "std", "patch_grid")}
    region = RegionSpec(**msgspec.structs.asdict(configuration.region), **own)
    return {
        "input": msgspec.convert(msgspec.to_builtins(configuration.input), type(manifest.input)),
        "region": region,
        "ensemble": msgspec.convert(msgspec.to_builtins(configuration.ensemble), type(manifest.ensemble)),
    }


def _key(name: str, configuration: Configuration) -> str:
    """Names everything that the graphs of a case depend on."""
    sections = msgspec.to_builtins((configuration.clip, configuration.prompt))
    parts = [sorted(shapes(name).items()), sections, configuration.region.crop_size]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(_code_digest())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _code_digest() -> bytes:
    digest = hashlib.sha256()
    for path in sorted([*(REPOSITORY / "export").rglob("*.py"), *(REPOSITORY / "runtime" / "bundle").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.digest()
