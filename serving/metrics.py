"""The server's own figures, kept in Triton's custom metrics, beside those that Triton counts itself."""

import os
import re
from collections.abc import Callable
from typing import Any

from vocabseg.serving.batch import Batch

# Name, what it says, and its labels (beside model and instance) with the values they take.
COUNTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vocabseg_images_total": ("Images answered", "", ()),
    "vocabseg_rejected_total": ("Images or names that could not be used, and answers that failed", "", ()),
    "vocabseg_regions_total": ("Regions that took part in the answers", "", ()),
    "vocabseg_batches_total": ("Batches run", "", ()),
    "vocabseg_stage_seconds_total": (
        "Seconds spent in a stage; stages overlap",
        "stage",
        ("decode", "names", "segment", "answer"),
    ),
    "vocabseg_graph_seconds_total": (
        "Seconds spent in a network",
        "graph",
        ("proposal", "image_encoder", "text_encoder"),
    ),
    "vocabseg_names_total": (
        "Class names looked up, by where their embedding was found",
        "source",
        ("memory", "disk", "encoded"),
    ),
}

RUNNING = "vocabseg_running"


def under_way(text: str, alive: Callable[[int], bool]) -> float:
    """How many requests wait or run, by the text of the server's metrics page; those of dead processes do not count."""
    total = 0.0
    for line in text.splitlines():
        process = re.match(RUNNING + r'\{.*pid="(\d+)"', line)
        if line.startswith("nv_inference_pending_request_count{") or (process and alive(int(process[1]))):
            total += float(line.rpartition(" ")[2])
    return total


class Metrics:
    """Figures of one model instance. `make_family(name, description, gauge)` makes Triton's family of that name."""

    def __init__(self, make_family: Callable[[str, str, bool], Any], labels: dict[str, str]):
        self._counters: dict[tuple[str, str], Any] = {}
        self._shown: dict[tuple[str, str], float] = {}
        self._families = []  # a family that is collected takes its metrics with it
        for name, (description, label, values) in COUNTERS.items():
            family = make_family(name, description, False)
            self._families.append(family)
            for value in values or ("",):
                own = {**labels, label: value} if label else labels
                self._counters[name, value] = family.Metric(labels=own)
        self._families.append(make_family(RUNNING, "Requests that are being answered", True))
        self._running = self._families[-1].Metric(labels={**labels, "pid": str(os.getpid())})

    def running(self, count: int) -> None:
        """So many requests are being answered."""
        self._running.set(count)

    def show(self, batch: Batch, batches: int) -> None:
        """Raise every counter to what was done so far."""
        tally = batch.tally
        now: dict[tuple[str, str], float] = {
            ("vocabseg_images_total", ""): tally.images,
            ("vocabseg_rejected_total", ""): tally.rejected,
            ("vocabseg_regions_total", ""): tally.regions,
            ("vocabseg_batches_total", ""): batches,
        }
        now |= {("vocabseg_stage_seconds_total", stage): seconds for stage, seconds in tally.seconds.items()}
        now |= {("vocabseg_names_total", source): count for source, count in batch.segmenter.text.counts.items()}
        for graph in COUNTERS["vocabseg_graph_seconds_total"][2]:
            if graph in batch.segmenter.bundle.manifest.graphs:
                seconds = getattr(batch.segmenter.engine(graph), "seconds", 0.0)
                now["vocabseg_graph_seconds_total", graph] = seconds
        for key, value in now.items():
            gained = value - self._shown.get(key, 0.0)
            if gained > 0:
                self._counters[key].increment(gained)
                self._shown[key] = value
