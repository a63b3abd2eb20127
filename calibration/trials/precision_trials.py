"""What each precision costs and gains on whole images: accuracy where labels are known, agreement, time and size."""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.datasets.dataset import Dataset
from vocabseg.calibration.failures import CalibrationError
from vocabseg.calibration.samples.ranges import GRAPHS
from vocabseg.calibration.search.fidelity import cosine
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.engines.choose import installed
from vocabseg.runtime.engines.interface import QUANTISED, VARIANTS
from vocabseg.runtime.engines.openvino import check_precision, products_saturate
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.progress import Progress, counted
from vocabseg.runtime.segmenter.host_stages import HostStages
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

# Images on which region embeddings are compared.
EMBEDDED = 16
# Computed on the CPU as a GPU would: the numbers are right, the time means nothing.
EMULATED = ("float16", "fp8")


class Trial(msgspec.Struct, frozen=True):
    """One precision on one set of images.

    Attributes:
        precision, engine: what ran.
        images: how many.
        miou, seen, unseen: mean IoU in percent over all classes, over those seen in training, and over the others; None
            without labels, or without a split.
        cosine, worst: mean and least cosine of region embeddings with float32's, of the same regions.
        agreement: percent of the pixels that have float32's label.
        seconds: median time of an image, from file to labels, all precisions taking turns; None where the engine only
            emulates a GPU, or computes a graph literally.
        bytes: size of the graphs that run for every image (proposals and regions).
    """

    precision: str
    engine: str
    images: int
    miou: float | None
    seen: float | None
    unseen: float | None
    cosine: float
    worst: float
    agreement: float
    seconds: float | None
    bytes: int


@dataclass(frozen=True)
class TrialSet:
    """Images to try precisions on, with a data set where the labels are known."""

    files: Sequence[Path]
    vocabulary: Vocabulary
    dataset: Dataset | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise CalibrationError("there is no image to try the precisions on: give --images or --dataset")

    @classmethod
    def of(cls, dataset: Dataset, limit: int) -> "TrialSet":
        """The first `limit` images of a data set."""
        files = [sample.image for sample in dataset.samples()[:limit]]
        return cls(files, Vocabulary(dataset.classes, dataset.seen), dataset)

    @property
    def description(self) -> str:
        """For a report."""
        if self.dataset is None:
            return "the images themselves, without labels"
        return f"{counted(len(self.files), 'image')} of {self.dataset.name}"

    @property
    def identity(self) -> str:
        """Names what is tried: data set, images and vocabulary."""
        parts = [self.dataset.name if self.dataset is not None else "files", *map(str, self.files)]
        shown = [image.digest for images in self.vocabulary.examples for image in images]
        return hashlib.sha256("\n".join([*parts, *self.vocabulary.written, *shown]).encode()).hexdigest()[:16]


def run_trials(
    bundle: Bundle, precisions: Sequence[tuple[str, str]], images: TrialSet, progress: Progress, literal: bool = False
) -> list[Trial]:
    """Try (engine, precision) pairs, taking turns on every image; the others are compared with the first.

    `literal`: ONNX Runtime computes quantised graphs as they are written.
    """
    candidates = [_Candidate(bundle, engine, precision, images, literal) for engine, precision in precisions]
    samples = images.dataset.samples() if images.dataset is not None else []
    for candidate in candidates:
        candidate.segmenter(images.files[0], images.vocabulary)  # warm up
    for index, path in enumerate(images.files):
        progress("trying every precision", index, len(images.files))
        truth = images.dataset.labels(samples[index]) if images.dataset is not None else None
        # Every other image in reverse order, so that none always comes after the same one.
        labels = {candidate: candidate.segment(path) for candidate in candidates[:: 1 if index % 2 == 0 else -1]}
        for candidate in candidates:
            candidate.add(labels[candidate], labels[candidates[0]], truth)
        if index < EMBEDDED:
            _compare_embeddings(candidates, path)
    progress("trying every precision", len(images.files), len(images.files))
    return [candidate.trial() for candidate in candidates]


class _Candidate:
    """One precision, opened, with what was measured of it so far."""

    def __init__(self, bundle: Bundle, engine: str, precision: str, images: TrialSet, literal: bool):
        self.segmenter = Segmenter(bundle, "cpu", engine, precision, literal=literal and precision in QUANTISED)
        assert isinstance(self.segmenter.stages, HostStages)
        self.stages = self.segmenter.stages
        self.segmenter.embed_names(images.vocabulary)
        self.precision, self.images = precision, images
        self.seconds: list[float] = []
        self.same = self.pixels = 0
        self.cosines: list[np.ndarray] = []
        self.confusion = ConfusionMatrix(len(images.vocabulary))

    def segment(self, path: Path) -> np.ndarray:
        begin = time.perf_counter()
        labels = self.segmenter(path, self.images.vocabulary).labels
        self.seconds.append(time.perf_counter() - begin)
        return np.asarray(labels)

    def add(self, labels: np.ndarray, wanted: np.ndarray, truth: np.ndarray | None) -> None:
        self.same += int((labels == wanted).sum())
        self.pixels += labels.size
        if truth is not None and self.images.dataset is not None:
            self.confusion.update(labels, truth, self.images.dataset.ignore_index)

    def trial(self) -> Trial:
        miou, seen, unseen = self._accuracy()
        cosines = np.concatenate(self.cosines) if self.cosines else np.ones(1)
        manifest, choice = self.segmenter.bundle.manifest, self.segmenter.choice
        records = manifest.graphs_in(choice.variant.removesuffix("-rounded"))
        return Trial(
            precision=self.precision,
            engine=choice.name,
            images=len(self.seconds),
            miou=miou,
            seen=seen,
            unseen=unseen,
            cosine=float(cosines.mean()),
            worst=float(cosines.min()),
            agreement=100 * self.same / self.pixels,
            seconds=None if self.precision in EMULATED or choice.literal else float(np.median(self.seconds)),
            bytes=sum(records[graph].total_bytes for graph in GRAPHS),
        )

    def _accuracy(self) -> tuple[float | None, float | None, float | None]:
        dataset = self.images.dataset
        if dataset is None:
            return None, None, None
        if dataset.seen is None:
            return self.confusion.mean_iou(), None, None
        metrics = self.confusion.metrics({"seen": np.flatnonzero(dataset.seen).tolist()})
        return metrics.miou, metrics.sets["seen"].miou, metrics.sets["seen"].complement_miou


def cpu_engine(precision: str) -> str:
    """The engine that a precision is tried in on a CPU."""
    if precision in EMULATED or not installed("openvino"):
        return "onnxruntime"
    return "onnxruntime" if precision == "int8" and products_saturate() else "openvino"


def default_precisions(bundle: Bundle) -> list[tuple[str, str]]:
    """(engine, precision) of everything that can be tried here, float32 first."""
    wanted = [(cpu_engine("float32"), "float32")]
    if installed("openvino"):
        with contextlib.suppress(EngineError):  # a CPU without bfloat16
            check_precision("bfloat16")
            wanted.append(("openvino", "bfloat16"))
    for precision in ("float16", "int8", "fp8"):
        engine = cpu_engine(precision)
        variant = VARIANTS.get((engine, "cpu", precision), precision)
        if installed(engine) and bundle.manifest.graphs_in(variant):
            wanted.append((engine, precision))
    return wanted


def _compare_embeddings(candidates: Sequence[_Candidate], path: Path) -> None:
    """The embeddings of float32's regions, whatever proposals the other precisions would have found."""
    wanted: np.ndarray | None = None
    first = candidates[0].stages
    proposals = first.propose(first.prepare(first.load(path)))
    for candidate in candidates:
        stages = candidate.stages
        own = stages.given(proposals.image, proposals.resized, proposals.masks, proposals.query_embeddings)
        stages.describe(own)
        if not len(own.boxes):
            return
        stages.encode(own)
        assert own.embeddings is not None
        wanted = own.embeddings if wanted is None else wanted
        candidate.cosines.append(cosine(wanted, own.embeddings))
