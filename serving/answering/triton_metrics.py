"""The model's own figures as Triton's custom metrics, beside those that Triton counts itself."""

import os
import threading
from collections.abc import Callable
from typing import Any

from vocabseg.serving.answering.responder import Responder
from vocabseg.serving.protocol import RUNNING

STAGES = ("decode", "names", "segment", "answer")
GRAPHS = ("proposal", "image_encoder", "text_encoder")
SOURCES = ("memory", "disk", "encoded")
# By name: the description, a label beside model and instance, and the values it takes.
COUNTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vocabseg_images_total": ("Images answered", "", ("",)),
    "vocabseg_rejected_total": ("Images or names that could not be used, and answers that failed", "", ("",)),
    "vocabseg_regions_total": ("Regions that took part in the answers", "", ("",)),
    "vocabseg_batches_total": ("Batches taken", "", ("",)),
    "vocabseg_request_seconds_total": ("Seconds from taking a request to its answer", "", ("",)),
    "vocabseg_stage_seconds_total": ("Seconds spent in a stage; stages overlap", "stage", STAGES),
    "vocabseg_graph_seconds_total": ("Seconds spent in a network", "graph", GRAPHS),
    "vocabseg_names_total": ("Class names looked up, by where their embedding was found", "source", SOURCES),
}


class TritonMetrics:
    """Figures of one model instance. `make_family(name, description, gauge)` makes Triton's family of that name."""

    def __init__(self, make_family: Callable[[str, str, bool], Any], labels: dict[str, str]):
        self._counters: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._shown: dict[tuple[str, str], float] = {}
        self._families = []  # a family that is garbage-collected takes its metrics with it
        for name, (description, label, values) in COUNTERS.items():
            family = make_family(name, description, False)
            self._families.append(family)
            for value in values:
                own = {**labels, label: value} if label else labels
                self._counters[name, value] = family.Metric(labels=own)
        self._families.append(make_family(RUNNING, "Requests that are being answered", True))
        self._running = self._families[-1].Metric(labels={**labels, "pid": str(os.getpid())})

    def running(self, count: int) -> None:
        """Set how many requests are being answered."""
        self._running.set(count)

    def show(self, responder: Responder) -> None:
        """Raise every counter to what was done so far."""
        statistics = responder.statistics
        now: dict[tuple[str, str], float] = {
            ("vocabseg_images_total", ""): statistics.images,
            ("vocabseg_rejected_total", ""): statistics.rejected,
            ("vocabseg_regions_total", ""): statistics.regions,
            ("vocabseg_batches_total", ""): statistics.batches,
            ("vocabseg_request_seconds_total", ""): statistics.request_seconds,
        }
        now |= {("vocabseg_stage_seconds_total", stage): seconds for stage, seconds in statistics.seconds.items()}
        now |= {("vocabseg_names_total", source): count for source, count in responder.segmenter.text.counts.items()}
        for graph in GRAPHS:
            if graph in responder.segmenter.bundle.manifest.graphs:
                seconds = getattr(responder.segmenter.engine(graph), "seconds", 0.0)
                now["vocabseg_graph_seconds_total", graph] = seconds
        with self._lock:
            for key, value in now.items():
                gained = value - self._shown.get(key, 0.0)
                if gained > 0:
                    self._counters[key].increment(gained)
                    self._shown[key] = value
