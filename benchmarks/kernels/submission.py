"""What it costs the host to submit one image to a GPU, step by step, with copies in the networks' place."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.engines.device_engines import DeviceEngine
from vocabseg.runtime.engines.interface import Choice
from vocabseg.runtime.segmenter.cuda_stages import CudaStages
from vocabseg.runtime.segmenter.regions import Regions
from vocabseg.runtime.segmenter.segmenter import Segmenter
from vocabseg.runtime.text.vocabulary import Vocabulary

IMAGE = (480, 640)
NAMES = ("dog", "grass", "house", "water")
CHOICE = Choice(name="onnxruntime", device="cuda:0", precision="float32", reason="copies stand in for the networks")
WARM_UP = 12  # images until all work has come before
IMAGES = 200


@dataclass(frozen=True)
class Submission:
    """A step of the pipeline, and the host's microseconds for it, image by image."""

    step: str
    times: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.times)


class CopiedOutputs:
    """A DeviceGraph whose outputs are the same for all inputs: random embeddings, and masks with a region each."""

    def __init__(self, device: Device, bundle: Bundle, name: str):
        record = bundle.graph(name)
        self.input_dtypes = {each.name: np.dtype(each.dtype) for each in record.inputs}
        self.output_dtypes = {each.name: np.dtype(each.dtype) for each in record.outputs}
        self._device, self._outputs = device, dict[tuple[str, tuple[int, ...]], DeviceArray]()

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream) -> None:
        """One copy for each output."""
        for name, target in outputs.items():
            key = name, target.shape
            if key not in self._outputs:
                host = np.random.default_rng(0).normal(0, 8, target.shape).astype(target.dtype)
                source = self._outputs[key] = self._device.empty(target.shape, target.dtype)
                stream.upload(source, host)
                stream.synchronize()
            stream.copy(target, self._outputs[key])

    def close(self) -> None:
        self._outputs.clear()


class _Engine(DeviceEngine):
    @property
    def graph(self) -> CopiedOutputs:
        if self._graph is None:
            self._graph = CopiedOutputs(self.device, self._bundle, self.name)
        return self._graph  # type: ignore[return-value]


class _Stages(CudaStages):
    def engine(self, graph: str) -> DeviceEngine:
        stream = self.front if graph == "proposal" else self.back
        if graph not in self.__dict__:
            self.__dict__[graph] = _Engine(self.device, self.bundle, graph, CHOICE, stream, self.lock)
        return self.__dict__[graph]  # type: ignore[no-any-return]


def submissions(device: Device, images: int | None = None) -> list[Submission]:
    """The steps of images of one size after each other, on the demo bundle, each waited for in between.

    It is the processor time of the thread that submits. Where the driver runs a kernel or copies before its call
    returns, as an emulation may, that is included; so is the copy of the image's pixels to pinned memory.
    """
    bundle = open_bundle(None)
    host = Segmenter(bundle, "cpu", "onnxruntime")
    vocabulary = Vocabulary(NAMES)
    host.embed_names(vocabulary)
    stages = _Stages(device, bundle, CHOICE, host.text.object_matrix)
    image = np.random.default_rng(1).integers(0, 256, (*IMAGE, 3), np.uint8)
    times: dict[str, list[float]] = {}
    for k in range((images or IMAGES) + WARM_UP):
        steps = _Steps(device, times if k >= WARM_UP else {})
        with stages.turn():
            prepared = steps.take("prepare", stages.prepare, image)
            proposals = steps.take("propose", stages.propose, prepared)
            steps.take("describe", stages.describe, proposals)
            steps.take("encode", stages.encode, proposals)
            arrays = steps.take("finish", stages.finish, proposals)
            regions = Regions(proposals.masks, arrays, stages, bundle.manifest.ensemble, host.text)
            answers = steps.take("classify", stages.classify, regions, vocabulary)
            pending = steps.take("compose", stages.compose, regions, answers, vocabulary)
        pending.result()
    total = [sum(values) for values in zip(*times.values(), strict=True)]
    return [*(Submission(step, values) for step, values in times.items()), Submission("an image", total)]


@dataclass(frozen=True)
class _Steps:
    device: Device
    times: dict[str, list[float]]

    def take(self, step: str, work: Callable[..., Any], *given: Any) -> Any:
        """Do `work` while the device is idle, and note how long it took."""
        begin = time.thread_time()
        found = work(*given)
        self.times.setdefault(step, []).append(1e6 * (time.thread_time() - begin))
        self.device.synchronize()
        return found


def report(rows: Sequence[Submission], name: str) -> Table:
    """One row for each step."""
    table = Table("step", "us: median (range)", title=f"{name}: the host's time to submit one image")
    for row in rows:
        table.add_row(row.step, f"{row.median:.0f} ({min(row.times):.0f}-{max(row.times):.0f})")
    return table
