"""What each precision costs and gains on whole images: accuracy where labels are known, agreement, time and size."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vocabseg.benchmarks.accuracy.metrics import ConfusionMatrix
from vocabseg.benchmarks.datasets.dataset import Dataset
from vocabseg.calibration.errors import CalibrationError
from vocabseg.calibration.fidelity import cosine
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.engines.choose import installed
from vocabseg.runtime.engines.interface import VARIANTS
from vocabseg.runtime.segmenter.host_stages import HostStages
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

# Images on which region embeddings are compared.
EMBEDDED = 16
# What stands for a GPU here: the numbers are right, the time means nothing.
EMULATED = ("float16", "fp8")

Progress = Callable[[str, int, int], None]


class Trial(msgspec.Struct, frozen=True):
    """One precision on one set of images.

    Attributes:
        precision, engine: what ran.
        images: how many.
        miou, seen, unseen: mean IoU in percent over all classes, and over those seen in training and the others; None
            without labels, or without a split.
        cosine, worst: mean and least cosine of region embeddings with float32's, of the same regions.
        agreement: percent of the pixels that have float32's label.
        seconds: median time of an image, from file to labels, all precisions taking turns; None where the engine only
            stands in for a GPU.
        bytes: size of the graphs that are run for an image (proposals and regions).
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


class TrialSet:
    """Images to try precisions on, with the truth where it is known.

    Either a data set, whose first `limit` images are taken, or files and a vocabulary.
    """

    def __init__(
        self,
        dataset: Dataset | None = None,
        limit: int | None = None,
        files: Sequence[Path] = (),
        vocabulary: Vocabulary | None = None,
    ):
        self.dataset = dataset
        if dataset is not None:
            self.samples: list[Any] = list(dataset.samples()[:limit])
            self.files = [sample.image for sample in self.samples]
            self.vocabulary = Vocabulary(dataset.classes, dataset.seen)
        elif vocabulary is not None:
            self.samples, self.files, self.vocabulary = [], list(files)[:limit], vocabulary
        if not self.files:
            raise CalibrationError("there is no image to try the precisions on: give --images or --dataset")

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured."""
        return self.dataset is not None

    @property
    def identity(self) -> str:
        """Names what is tried: data set, images and vocabulary."""
        parts = [self.dataset.name if self.dataset is not None else "files", *map(str, self.files)]
        return hashlib.sha256("\n".join([*parts, *self.vocabulary.names]).encode()).hexdigest()[:16]

    def truth(self, index: int) -> np.ndarray | None:
        """The label map (H, W) of an image; None where it is not known."""
        return None if self.dataset is None else self.dataset.labels(self.samples[index])


def run_trials(
    bundle: Bundle, precisions: Sequence[tuple[str, str]], images: TrialSet, progress: Progress
) -> list[Trial]:
    """Try (engine, precision) pairs, the first of which the others are compared with, in turns on every image."""
    runs = [_Run(bundle, engine, precision, images) for engine, precision in precisions]
    runs[0].warm_up(images.files[0])
    for run in runs[1:]:
        run.warm_up(images.files[0])
    for index, path in enumerate(images.files):
        progress("trying every precision", index, len(images.files))
        truth = images.truth(index)
        # Every other image backwards, so that none always comes after the same one.
        results = {}
        for run in runs if index % 2 == 0 else runs[::-1]:
            results[run] = run.segment(path)
        wanted = results[runs[0]]
        for run, found in results.items():
            run.add(found, wanted, truth)
        if index < EMBEDDED:
            _compare_embeddings(runs, path)
    progress("trying every precision", len(images.files), len(images.files))
    return [run.trial() for run in runs]


class _Run:
    """One precision, opened, with what it has been measured at."""

    def __init__(self, bundle: Bundle, engine: str, precision: str, images: TrialSet):
        self.segmenter = Segmenter(bundle, "cpu", engine, precision)
        assert isinstance(self.segmenter.stages, HostStages)
        self.stages = self.segmenter.stages
        self.segmenter.embed_names(images.vocabulary)
        self.precision, self.images = precision, images
        self.seconds: list[float] = []
        self.same = self.pixels = 0
        self.cosines: list[np.ndarray] = []
        self.confusion = ConfusionMatrix(len(images.dataset.classes)) if images.dataset is not None else None

    def warm_up(self, path: Path) -> None:
        self.segmenter(path, self.images.vocabulary)

    def segment(self, path: Path) -> np.ndarray:
        begin = time.perf_counter()
        labels = self.segmenter(path, self.images.vocabulary).labels
        self.seconds.append(time.perf_counter() - begin)
        return np.asarray(labels)

    def add(self, labels: np.ndarray, wanted: np.ndarray, truth: np.ndarray | None) -> None:
        self.same += int((labels == wanted).sum())
        self.pixels += labels.size
        if truth is not None and self.confusion is not None and self.images.dataset is not None:
            self.confusion.update(labels, truth, self.images.dataset.ignore_index)

    def trial(self) -> Trial:
        miou, seen, unseen = self._accuracy()
        cosines = np.concatenate(self.cosines) if self.cosines else np.ones(1)
        manifest, choice = self.segmenter.bundle.manifest, self.segmenter.choice
        records = manifest.graphs_in(choice.variant)
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
            seconds=None if self.precision in EMULATED else float(np.median(self.seconds)),
            bytes=image_bytes(records if choice.variant != "float16-rounded" else manifest.graphs_in("float16")),
        )

    def _accuracy(self) -> tuple[float | None, float | None, float | None]:
        dataset = self.images.dataset
        if dataset is None or self.confusion is None:
            return None, None, None
        if dataset.seen is None:
            return self.confusion.mean_iou(), None, None
        seen = [index for index, flag in enumerate(dataset.seen) if flag]
        metrics = self.confusion.metrics({"seen": seen})
        return metrics.miou, metrics.sets["seen"].miou, metrics.sets["seen"].complement_miou


def image_bytes(records: Mapping[str, Any]) -> int:
    """Size of the graphs that every image needs; the text encoder runs once per name."""
    return sum(records[name].total_bytes for name in ("image_encoder", "proposal") if name in records)


def default_precisions(bundle: Bundle) -> list[tuple[str, str]]:
    """(engine, precision) of everything that can be tried here, float32 first."""
    fast = "openvino" if installed("openvino") else "onnxruntime"
    wanted = [(fast, "float32")]
    if fast == "openvino":
        wanted.append((fast, "bfloat16"))
    for precision in ("float16", "int8", "fp8"):
        engine = "onnxruntime" if precision in EMULATED else fast
        variant = VARIANTS.get((engine, "cpu", precision), precision)
        if installed(engine) and bundle.manifest.graphs_in(variant):
            wanted.append((engine, precision))
    return wanted


def _compare_embeddings(runs: Sequence[_Run], path: Path) -> None:
    """The embeddings of float32's regions, whatever proposals the other precisions would have found."""
    wanted: np.ndarray | None = None
    first = runs[0].stages
    proposals = first.propose(first.prepare(first.load(path)))
    for run in runs:
        own = run.stages.given(proposals.image, proposals.resized, proposals.masks, proposals.query_embeddings)
        run.stages.describe(own)
        if not len(own.boxes):
            return
        run.stages.encode(own)
        assert own.embeddings is not None
        wanted = own.embeddings if wanted is None else wanted
        run.cosines.append(cosine(wanted, own.embeddings))
