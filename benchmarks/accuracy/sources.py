"""What can be evaluated: a bundle on an engine, the PyTorch reference, or any object that segments."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec
import numpy as np

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import sha256_file
from vocabseg.runtime.bundle.settings import open_adjusted
from vocabseg.runtime.errors import ConfigurationError
from vocabseg.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vocabseg.export.reference import ReferenceSegmenter

# Takes an image's path and the vocabulary; the result has `labels` (H, W), and may have `panoptic` and `instances`.
Segment = Callable[[Any, Vocabulary], Any]


class Source(Protocol):
    """Something that can be opened, in another process too, and then segments.

    `identity` says in text what it is: results under another identity are never mixed with these. What
    `described_settings` returns, plain types by section, is in the report; a source may be without it.
    """

    @property
    def identity(self) -> dict[str, str]: ...

    def open(self) -> Segment: ...


@dataclass(frozen=True)
class BundleSource:
    """A bundle's folder; engine, device and precision as for `vocabseg.load`; settings are "section.key=value"."""

    folder: Path
    settings: Sequence[str] = ()
    engine: str | None = None
    device: str = "auto"
    precision: str | None = None
    vocabulary: Vocabulary | None = None  # in place of the data set's names, class by class; it may have another class

    @cached_property
    def identity(self) -> dict[str, str]:
        from vocabseg.runtime.engines.choose import choose

        bundle = self._bundle(verify=False)
        bundle.require_proposals()
        choice = choose(self.engine, self.device, self.precision, bundle.manifest.graph_bytes, bundle)
        own = {} if self.vocabulary is None else {"vocabulary": _digest(self.vocabulary.described())}
        return _bundle_identity(bundle, choice.key) | own

    def described_settings(self) -> dict[str, Any]:
        return self._bundle(verify=False).manifest.settings()

    def open(self) -> Segment:
        from vocabseg.runtime.segmenter.opening import open_segmenter

        segmenter = open_segmenter(self._bundle(verify=True), self.device, self.engine, self.precision)
        if segmenter.per_pixel:  # no masks to measure panoptic quality or mask AP with
            return lambda image, vocabulary: LabelsOnly(segmenter(image, vocabulary).labels)
        return segmenter

    def _bundle(self, verify: bool) -> Bundle:
        return open_adjusted(self.folder, self.settings, verify)


@dataclass(frozen=True)
class ReferenceSource:
    """The plain PyTorch method in float32 with a checkpoint's weights; its result is a label map alone."""

    checkpoint: Path
    configuration: str
    settings: Sequence[str] = ()
    clip_source: str | None = None

    @cached_property
    def identity(self) -> dict[str, str]:
        from vocabseg.export.configuration import load_configuration

        configuration = load_configuration(self.configuration, list(self.settings))
        return {
            "model": self.checkpoint.name,
            "weights": sha256_file(self.checkpoint),
            "settings": _digest(configuration),
            "clip": self.clip_source or "the checkpoint's own",
            "engine": "pytorch-reference-float32",
        }

    def described_settings(self) -> dict[str, Any]:
        from vocabseg.export.configuration import load_configuration

        settings: dict[str, Any] = msgspec.to_builtins(load_configuration(self.configuration, list(self.settings)))
        return settings

    def open(self) -> Segment:
        from vocabseg.export.checkpoint.load import load_model, read_state_dict
        from vocabseg.export.configuration import load_configuration
        from vocabseg.export.reference import ReferenceSegmenter

        configuration = load_configuration(self.configuration, list(self.settings))
        if configuration.proposal.per_pixel:
            raise ConfigurationError(
                f"{self.configuration} is a per-pixel model, whose PyTorch reference is not measured: export it, and "
                "evaluate the bundle"
            )
        model = load_model(read_state_dict(self.checkpoint), configuration, self.clip_source)
        return ReferenceSegment(ReferenceSegmenter(model, configuration))


@dataclass(frozen=True)
class LabelsOnly:
    """A result that is a label map (H, W) and nothing else."""

    labels: np.ndarray


@dataclass
class ReferenceSegment:
    """The reference as something that segments one image at a time; names are embedded once per vocabulary."""

    reference: "ReferenceSegmenter"
    _texts: dict[Vocabulary, Any] = field(default_factory=dict)

    def __call__(self, image: Any, vocabulary: Vocabulary) -> LabelsOnly:
        import torch

        from vocabseg.export.reference import normalise_and_pad, resize_shortest_edge
        from vocabseg.runtime.images import load_image

        if vocabulary not in self._texts:
            self._texts = {vocabulary: self.reference.text_embeddings(vocabulary.names)}
        pixels = load_image(image)
        settings = self.reference.configuration.input
        with torch.inference_mode():
            resized = resize_shortest_edge(pixels, settings)
            mask_logits, queries = self.reference.model.proposal(normalise_and_pad([resized], settings))
            seen = None if vocabulary.seen is None else [bool(flag) for flag in vocabulary.seen]
            output = self.reference.classify(pixels, resized, mask_logits[0], queries[0], self._texts[vocabulary], seen)
        return LabelsOnly(output.labels.numpy().astype(np.int32))


@dataclass(frozen=True)
class OpenedSource:
    """Something that segments already; it cannot be sent to another process."""

    segment: Segment

    @property
    def identity(self) -> dict[str, str]:
        bundle = getattr(self.segment, "bundle", None)
        if isinstance(bundle, Bundle):
            choice = getattr(self.segment, "choice", None)
            return _bundle_identity(bundle, getattr(choice, "key", "unknown"))
        own: Mapping[str, str] | None = getattr(self.segment, "identity", None)
        return dict(own) if own else {"model": type(self.segment).__qualname__, "engine": "unknown"}

    def described_settings(self) -> dict[str, Any]:
        bundle = getattr(self.segment, "bundle", None)
        return bundle.manifest.settings() if isinstance(bundle, Bundle) else {}

    def open(self) -> Segment:
        return self.segment


def as_source(thing: Source | Segment) -> Source:
    """`thing` itself if it can be opened, else a source that wraps it."""
    # isinstance would compute its identity, which may take a while.
    return cast(Source, thing) if hasattr(thing, "open") else OpenedSource(thing)


def described_settings(source: Source) -> dict[str, Any]:
    """The settings of a source, plain types by section; none where it does not tell."""
    describe = getattr(source, "described_settings", None)
    return {} if describe is None else describe()


def _bundle_identity(bundle: Bundle, engine: str) -> dict[str, str]:
    return {"model": bundle.manifest.name, "manifest": _digest(bundle.manifest), "engine": engine}


def _digest(settings: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()
