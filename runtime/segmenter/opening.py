"""A bundle -> what segments images with it."""

from pathlib import Path

from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.segmenter.segmenter import Segmenter


def load(
    bundle: str | Path | None = None,
    device: str = "auto",
    engine: str | None = None,
    precision: str | None = None,
) -> Segmenter:
    """Open a bundle and make it ready to run.

    Args:
        bundle: the bundle's folder, as written by `vocabseg export`; None selects the built-in demo model.
        device: "auto", "cpu", "cuda" or "cuda:N"; "auto" is the first usable GPU, if there is one.
        engine: "openvino" or "onnxruntime", on a GPU "tensorrt" or "onnxruntime"; None selects the fastest installed.
        precision: "float32", "bfloat16" with OpenVINO, or "float16" with ONNX Runtime, which on a CPU serves to check
            what FP16 graphs compute on a GPU and is no faster than float32; None selects the engine's default.

    Raises BundleError if the bundle cannot be used, and EngineError if the engine cannot.
    """
    return open_segmenter(open_bundle(bundle), device, engine, precision)


def open_segmenter(
    bundle: Bundle, device: str = "auto", engine: str | None = None, precision: str | None = None
) -> Segmenter:
    """As `load`, for an open bundle, of a two-stage model or of the one-stage baseline."""
    kind = Segmenter
    if bundle.manifest.per_pixel:
        from vocabseg.runtime.segmenter.pixels import PixelSegmenter

        kind = PixelSegmenter
    return kind(bundle, device, engine, precision)
