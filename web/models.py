"""The models that the page offers, and those of them that are open."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.bundle.manifest import MANIFEST
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.errors import BundleError, ConfigurationError, VocabsegError
from vocabseg.runtime.segmenter.segmenter import Segmenter

# Models that are open at a time: two are compared.
OPEN = 2
PRECISIONS = ("float32", "bfloat16", "float16", "int8", "fp8")
# Those that an engine makes of the float32 graphs; for all others a bundle needs graphs of their own.
OF_FLOAT32 = ("float32", "bfloat16")


def find_bundles(folder: Path | None) -> tuple[dict[str, Bundle], list[str]]:
    """The bundles to offer, by name, and why others in the folder are left out, a line each.

    `folder` is a bundle, or one of bundles, which are named like their folders; None is the built-in demo model. Files
    are checked against their hashes when they are first used. Raises BundleError where nothing is left.
    """
    if folder is None or (folder / MANIFEST).exists() or not folder.is_dir():
        bundle = _usable(folder)
        return {bundle.manifest.name: bundle}, []
    found, left_out = {}, []
    for place in sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")):
        try:
            found[place.name] = _usable(place)
        except VocabsegError as error:
            left_out.append(str(error))
    if not found:
        reason = f": {left_out[0]}" if left_out else " (make one with `vocabseg export`)"
        raise BundleError(f"{folder} is no bundle, and no folder in it is one that can be used{reason}")
    return found, left_out


def _usable(folder: Path | None) -> Bundle:
    bundle = open_bundle(folder, verify=False)
    bundle.require_proposals()
    if bundle.manifest.per_pixel:
        raise BundleError(
            f"{bundle.manifest.name} is a per-pixel model, and the page works on masks and regions: give the bundle of "
            "a two-stage model"
        )
    return bundle


class Models:
    """The bundles by name, in every precision that runs here; the last OPEN that were used stay open. Thread-safe."""

    def __init__(self, bundles: Mapping[str, Bundle], device: str = "auto", engine: str | None = None):
        """Raises EngineError where this machine cannot run a bundle, and BundleError where it lacks the graphs."""
        self.bundles = dict(bundles)
        self._how = (engine, device)
        self._open: OrderedDict[tuple[str, str], Segmenter] = OrderedDict()
        self._lock = threading.Lock()
        self.precisions = {name: self._precisions(bundle) for name, bundle in self.bundles.items()}

    def _precisions(self, bundle: Bundle) -> list[str]:
        """Those that run here, the one that is taken unasked first."""
        known = (None, *(each for each in PRECISIONS if each in OF_FLOAT32 or each in bundle.manifest.variants))
        found: dict[str, None] = {}
        for precision in known:
            try:
                choice = choose(*self._how, precision, bundle.manifest.graph_bytes, bundle)
            except VocabsegError:
                if precision is None:
                    raise
            else:
                found[choice.precision] = None
        return list(found)

    def listed(self) -> list[dict[str, Any]]:
        """Name and precisions of each, as plain types."""
        return [{"name": name, "precisions": precisions} for name, precisions in self.precisions.items()]

    def open_keys(self) -> set[tuple[str, str]]:
        """Name and precision of each model that is open."""
        with self._lock:
            return set(self._open)

    def segmenter(self, name: str, precision: str) -> Segmenter:
        """The model, opened and run once if it was not open, so that its first answer takes as long as every other.

        Raises ConfigurationError for a model or a precision that is not offered, and as `open_segmenter`.
        """
        if precision not in self.precisions.get(name, ()):
            raise ConfigurationError(f"there is no model {name[:80]!r} in {precision[:20]!r}: choose another")
        with self._lock:
            segmenter = self._open.pop((name, precision), None)
            if segmenter is None:
                while len(self._open) >= OPEN:
                    self._open.popitem(last=False)
                engine, device = self._how
                segmenter = Segmenter(self.bundles[name], device, engine, precision)
                segmenter.propose(np.zeros((64, 64, 3), np.uint8)).classify(["thing"])
            self._open[name, precision] = segmenter
            return segmenter
