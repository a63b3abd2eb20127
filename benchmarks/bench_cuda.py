"""A bundle on a GPU as a variant of the benchmark: stages timed by the device's own events, nothing slowed for it."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.bench_peaks import COPIED, REPEAT
from vocabseg.benchmarks.bench_results import Peaks
from vocabseg.benchmarks.bench_stages import Stopwatch
from vocabseg.benchmarks.bench_variants import Capture, EngineSpec, PipelineVariant, Run, lead
from vocabseg.runtime.cuda import open_device, parse_device
from vocabseg.runtime.cuda_arrays import DeviceArray
from vocabseg.runtime.cuda_regions import CudaRegions
from vocabseg.runtime.cuda_segmenter import CudaSegmenter
from vocabseg.runtime.cuda_streams import Event
from vocabseg.runtime.engines import choose
from vocabseg.runtime.errors import EngineError
from vocabseg.runtime.images import load_image
from vocabseg.runtime.settings import open_adjusted

# Side of the matrices whose product is the GPU's peak: 128 MB each in half precision, far more than its caches.
SIDE = 8192
# Bytes of the GPU's copy: beyond the 50 MB second-level cache of an H200.
DEVICE_COPIED = 8 * COPIED


class EventTimeline:
    """Collects the events around the pipeline's stages, and with `keep` copies of what they gave."""

    def __init__(self, keep: bool = False):
        self.keep = keep
        self.kept: dict[str, list[np.ndarray]] = {}
        self._stages: list[tuple[str, Event, Event]] = []

    def stage(self, name: str, begin: Event, end: Event) -> None:
        """One run of a stage."""
        self._stages.append((name, begin, end))

    def note(self, name: str, arrays: dict[str, Any]) -> None:
        """What a stage gave; its buffers are used again, so it is copied now."""
        if self.keep:
            for key, array in arrays.items():
                host = array.to_host() if isinstance(array, DeviceArray) else np.asarray(array)
                self.kept.setdefault(key, []).append(host)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage; waits for the last event."""
        found: dict[str, float] = {}
        for name, begin, end in self._stages:
            end.synchronize()
            found[name] = found.get(name, 0.0) + end.elapsed_since(begin) / 1000
        return found


class DeviceVariant(PipelineVariant):
    """A bundle's own pipeline on a GPU, observed."""

    segmenter: CudaSegmenter

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        bundle = open_adjusted(spec.folder, spec.settings)
        self._device = open_device(parse_device(spec.device))
        self._free = self._lowest = self._device.memory()["free"]
        choice = choose(spec.engine, spec.device, spec.precision, bundle.manifest.graph_bytes, bundle)
        self.segmenter = CudaSegmenter(bundle, choice, self._device)
        self.segmenter.embed_names(spec.vocabulary)
        self.watch = Stopwatch(synchronise=self._device.synchronize)

    def run(self, image: Path) -> Run:
        """Segment one image, timed; stages by events on the device, decoding and the whole by the clock."""
        timeline = self.segmenter.stages.timeline = EventTimeline()
        self.watch.start()
        begin = self.watch.now()
        with self.watch.measure("decode"):
            pixels = load_image(image)
        regions = self.segmenter.propose(pixels)
        regions.classify(self.spec.vocabulary)
        total = self.watch.now() - begin
        self.segmenter.stages.timeline = None
        self._look_at_memory()
        return Run({**self.watch.seconds, **timeline.seconds()}, total, int(regions.valid.sum()))

    def many(self, images: Sequence[Path]) -> float:
        """Seconds of `segment_many` over the images."""
        spent = super().many(images)
        self._look_at_memory()
        return spent

    def capture(self, image: Path) -> Capture:
        """Segment one image and keep everything."""
        timeline = self.segmenter.stages.timeline = EventTimeline(keep=True)
        regions = self.segmenter.propose(image)
        self.segmenter.stages.timeline = None
        kept = timeline.kept
        return self._captured(regions, kept, kept["network_input"][0], kept["resized"][0])

    def capture_from(self, image: Path, given: Capture) -> Capture:
        """Every stage on its own, fed with what `given` has."""
        segmenter = self.segmenter
        first = self.capture(image)
        outputs = segmenter.engine("proposal").run({"image": given.network_input})
        timeline = segmenter.stages.timeline = EventTimeline(keep=True)
        regions = segmenter.describe(
            load_image(image), given.resized, given.mask_logits, given.query_embeddings, given.padded
        )
        segmenter.stages.timeline = None
        captured = self._captured(regions, timeline.kept, first.network_input, first.resized)
        found = (outputs["mask_logits"][0], outputs["query_embeddings"][0])
        return replace(captured, mask_logits=found[0], query_embeddings=found[1])

    def device_memory(self) -> int:
        """Bytes of the GPU that this process took beyond its context, at the most seen after a run."""
        return self._free - self._lowest

    def _look_at_memory(self) -> None:
        self._lowest = min(self._lowest, self._device.memory()["free"])

    def _captured(
        self, regions: Any, kept: dict[str, list[np.ndarray]], network_input: np.ndarray, resized: np.ndarray
    ) -> Capture:
        assert isinstance(regions, CudaRegions)
        assert regions.query_embeddings is not None
        result = regions.classify(self.spec.vocabulary)
        evidence: Any = result.evidence
        crops = kept.get("crops")
        return Capture(
            resized=resized,
            network_input=network_input.astype(np.float32, copy=False),
            mask_logits=regions.mask_logits,
            query_embeddings=regions.query_embeddings,
            valid=regions.valid,
            boxes=regions.boxes,
            crops=None if not crops else np.concatenate(crops).astype(np.float32, copy=False),
            embeddings=regions.embeddings if crops else None,
            probabilities=evidence.class_probabilities,
            voters=regions.voters,
            labels=result.labels,
            margin=lead(result.class_scores()),
        )


class DevicePeakMeter:
    """What the GPU does at most, measured through torch."""

    def __init__(self, device: str):
        self._device = device

    def measure(self) -> Peaks:
        """The best of a few runs; raises EngineError where torch sees no GPU."""
        try:
            import torch
        except ImportError:
            raise EngineError("measuring a GPU's peaks needs PyTorch with CUDA: pip install torch") from None
        if not torch.cuda.is_available():
            raise EngineError("the installed PyTorch sees no GPU: its peaks cannot be measured; install it with CUDA")
        torch.backends.cuda.matmul.allow_tf32 = False
        products = {name: self._float_rate(torch, name) for name in ("float32", "bfloat16", "float16")}
        products |= self._eight_bits(torch)
        how = (
            f"product of two {SIDE} x {SIDE} matrices by PyTorch, TF32 off; copy of {DEVICE_COPIED // 2**20} MiB on "
            f"{torch.cuda.get_device_name(self._device)}, bytes read and written"
        )
        return Peaks(products=products, copy=self._copy_rate(torch), threads=1, how=how)

    def _rate(self, torch: Any, product: Callable[[], Any]) -> float:
        """Operations per second of a product of two matrices."""
        return 2.0 * SIDE**3 / self._seconds(torch, product)

    def _float_rate(self, torch: Any, precision: str) -> float:
        matrix = torch.randn(SIDE, SIDE, device=self._device, dtype=getattr(torch, precision))
        return self._rate(torch, lambda: matrix @ matrix)

    def _eight_bits(self, torch: Any) -> dict[str, float]:
        """Products in int8 and FP8, as far as this GPU and this PyTorch have them."""
        matrix = torch.randn(SIDE, SIDE, device=self._device)
        rates = {}
        with contextlib.suppress(AttributeError, RuntimeError):
            whole = (40 * matrix).to(torch.int8)
            rates["int8"] = self._rate(torch, lambda: torch._int_mm(whole, whole.t()))
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):
            small, one = matrix.to(torch.float8_e4m3fn), torch.ones((), device=self._device)
            out = torch.bfloat16
            rates["fp8"] = self._rate(torch, lambda: torch._scaled_mm(small, small.t(), one, one, out_dtype=out))
        return rates

    def _copy_rate(self, torch: Any) -> float:
        source = torch.ones(DEVICE_COPIED // 4, device=self._device)
        target = torch.empty_like(source)
        return 2.0 * DEVICE_COPIED / self._seconds(torch, lambda: target.copy_(source))

    def _seconds(self, torch: Any, work: Any) -> float:
        times = []
        for _ in range(REPEAT + 2):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return min(times[2:])
