"""Small benchmarks for tests: settings for small work, workers without processes, reports made by hand."""

from typing import Any

import numpy as np

from vocabseg.benchmarks.speed.results import (
    VERSION,
    BatchTiming,
    BenchmarkReport,
    Check,
    ImageInfo,
    Parity,
    Peaks,
    StageRoof,
    VariantResult,
    timing,
)
from vocabseg.benchmarks.speed.variants import Capture

CASE = "c_r50_tiny16_vild"
# Few and small: a whole run takes a fraction of a second.
SETTINGS = ("input.min_size=64", "input.max_size=96", "region.mask_threshold=0.99")


class LocalWorker:
    """A worker without a process: the variant is called here; `calls` are those of all workers, in order."""

    calls: list[tuple[str, str]]

    def __init__(self, spec: Any):
        self.spec, self.variant = spec, None

    def ready(self) -> None:
        self.variant = self.spec.open()

    def call(self, method: str, *arguments: Any) -> Any:
        LocalWorker.calls.append((self.spec.name, method))
        return 2**30 if method == "memory" else getattr(self.variant, method)(*arguments)

    def close(self) -> None:
        self.variant = None


def made_variant(name: str, seconds: float = 0.1, spread: float = 0.01, parity: Parity | None = None) -> VariantResult:
    """Figures of two stages and in all, each with that median and that distance between the quartiles."""

    def runs(middle: float, share: float = 1.0) -> Any:
        half = share * spread / 2
        return timing([middle - 2 * half, middle - half, middle, middle + half, middle + 2 * half])

    batch = BatchTiming(images=4, timing=runs(4 * seconds, 4), images_per_second=1 / seconds, regions_per_second=30)
    return VariantResult(
        name=name,
        precision="float32",
        stages={"proposal": runs(0.3 * seconds), "image_encoder": runs(0.7 * seconds)},
        total=runs(seconds),
        batches=[batch],
        peak_host_bytes=512 * 2**20,
        roof=[made_roof("proposal", 1e9, 0.02, 0.04, "compute"), made_roof("decode", 0, 1e-4, 1e-3, "memory")],
        parity=parity,
    )


def made_roof(stage: str, operations: float, floor: float, seconds: float, bound: str) -> StageRoof:
    """One stage that moves a megabyte."""
    return StageRoof(
        stage=stage, operations=operations, bytes=1e6, floor=floor, seconds=seconds, share=floor / seconds, bound=bound
    )


def made_parity(cosine: float = 0.9999999) -> Parity:
    """Three figures, of which the cosine may be too low."""
    checks = [
        Check(stage="proposal", what="mask logits, largest difference", value=1e-4, limit=1e-3),
        Check(stage="image_encoder", what="region embeddings, worst cosine", value=cosine, limit=0.99999, least=True),
        Check(stage="labels", what="labels of all pixels, share", value=0.999, least=True),
    ]
    broken = None if cosine >= 0.99999 else "image_encoder"
    return Parity(
        against="<the other>", precision="float32", checks=checks, broken=broken, worst_image=0, agreement=[0.999]
    )


def made_report(*variants: VariantResult, **changes: Any) -> BenchmarkReport:
    """A report on one image."""
    entries: dict[str, Any] = {
        "version": VERSION,
        "date": "2026-01-02T03:04:05Z",
        "machine": {"processor": "a <fast> one", "cores": "2 physical", "threads used": "2"},
        "bundle": "small & quick",
        "bundle_digest": "0123456789abcdef",
        "settings": [],
        "classes": 3,
        "images": [ImageInfo(name="photo.jpg", size=(30, 40), padded=(64, 96), regions=7)],
        "rounds": 5,
        "peaks": Peaks(products={"float32": 1e11}, copy=1e10, threads=2, how="by hand"),
        "oracle": "onnxruntime",
        "oracle_reason": "ONNX Runtime in float32",
        "variants": list(variants),
    }
    return BenchmarkReport(**(entries | changes))


def made_capture(seed: int = 0, masks: int = 4, classes: int = 3) -> Capture:
    """Smooth masks of 16 x 24 logits over a 64 x 96 input whose image fills it; masks 0 to 2 are valid."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :24]
    centres = [(4, 5), (8, 12), (11, 18), (0, 0)]
    logits = np.stack([4.003 - 0.7 * np.hypot(rows - y, columns - x) for y, x in centres[:masks]]).astype(np.float32)
    logits[3] = -5
    valid = np.array([True, True, True, False])
    embeddings = generator.standard_normal((3, 8)).astype(np.float32)
    labels = generator.integers(0, classes, (40, 60)).astype(np.int32)
    return Capture(
        resized=generator.integers(0, 256, (64, 96, 3)).astype(np.uint8),
        network_input=generator.standard_normal((1, 3, 64, 96)).astype(np.float32),
        mask_logits=logits,
        query_embeddings=generator.standard_normal((masks, 8)).astype(np.float32),
        valid=valid,
        boxes=np.array([[1, 2, 30, 40], [20, 10, 60, 50], [50, 30, 90, 60]], np.int32),
        crops=generator.standard_normal((3, 3, 16, 16)).astype(np.float32),
        embeddings=embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
        probabilities=generator.dirichlet(np.ones(classes), masks).astype(np.float32),
        voters=np.arange(masks),
        labels=labels,
        margin=np.full((40, 60), 0.1, np.float32),
    )
