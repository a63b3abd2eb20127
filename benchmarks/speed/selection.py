"""What a benchmark measures: which variants can run here, why others cannot, and which one is the yardstick."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vocabseg.benchmarks.speed.pytorch import PRECISIONS, TorchSpec, Weights, unavailable
from vocabseg.benchmarks.speed.results import VariantResult
from vocabseg.benchmarks.speed.variants import EngineSpec, Spec
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError
from vocabseg.runtime.text.vocabulary import Vocabulary

TORCH = ("torch-eager", "torch-compile")
ENGINES = ("onnxruntime", "openvino", "tensorrt")
NAMES = (*TORCH, *ENGINES)


@dataclass(frozen=True)
class Budget:
    """How long to measure: rounds over all images, but no new one after `seconds`; passes of the smaller measurements.

    With `scenes` 0 no mean IoU is measured, with `cold` 0 no fresh process is started, with `names` 0 no text encoded.
    """

    repeat: int = 5
    seconds: float = 120.0
    batches: tuple[int, ...] = (1, 4)
    scenes: int = 40
    cold: int = 3
    names: int = 64


@dataclass(frozen=True)
class Plan:
    """Everything that a benchmark needs to know before it starts."""

    bundle: Bundle
    settings: tuple[str, ...]
    vocabulary: Vocabulary
    images: tuple[Path, ...]
    variants: tuple[Spec, ...]
    missing: tuple[VariantResult, ...]
    oracle: Spec | None
    oracle_reason: str
    budget: Budget
    device: str = "cpu"


def make_plan(
    bundle: Bundle,
    vocabulary: Vocabulary,
    images: Sequence[Path],
    weights: Weights | str,
    engine: str | None = None,
    against: Sequence[str] = (),
    precisions: Sequence[str] = (),
    settings: Sequence[str] = (),
    budget: Budget | None = None,
    device: str = "cpu",
) -> Plan:
    """The engine that `vocabseg.load` takes first, then those of `against`, each in every precision that it has.

    Without `precisions`, that engine runs in the precision `vocabseg.load` takes, and everything in float32. `weights`
    are the PyTorch ones, or a text that says why there are none. Raises ConfigurationError for names that do not exist
    and EngineError where no engine can run.
    """
    for name in against:
        if name not in NAMES:
            raise ConfigurationError(f"--against {name!r}: give some of {', '.join(NAMES)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigurationError(f"--precision {precision!r}: give some of {', '.join(PRECISIONS)}")
    own = choose(engine, device, None, bundle.manifest.graph_bytes, bundle)
    device = own.device
    wanted = dict.fromkeys((name, precision) for precision in precisions for name in (own.name, *against))
    if not precisions:
        wanted = dict.fromkeys([(own.name, own.precision), *((name, "float32") for name in (own.name, *against))])
    found: list[Spec] = []
    missing: list[VariantResult] = []
    for name, precision in wanted:
        spec = _spec(name, precision, bundle, vocabulary, weights, tuple(settings), device)
        if isinstance(spec, str):
            missing.append(VariantResult(name=_named(name, precision), precision=precision, reason=spec))
        else:
            found.append(spec)
    if not found:
        raise EngineError(f"nothing can run here: {missing[0].reason}")
    oracle, reason = _oracle(bundle, vocabulary, weights, tuple(settings), found, device)
    return Plan(
        bundle, tuple(settings), vocabulary, tuple(images), tuple(found), tuple(missing), oracle, reason,
        budget or Budget(), device,
    )  # fmt: skip


def _spec(
    name: str,
    precision: str,
    bundle: Bundle,
    vocabulary: Vocabulary,
    weights: Weights | str,
    settings: tuple[str, ...],
    device: str,
) -> Spec | str:
    """The variant, or why it is not available."""
    if name in TORCH:
        reason = unavailable(name == "torch-compile", device, precision)
        if reason is not None:
            return reason
        if isinstance(weights, str):
            return weights
        return TorchSpec(weights, precision, vocabulary, name == "torch-compile", device)
    if name == "tensorrt" and device == "cpu" and find_spec("tensorrt") is None:
        return "the package tensorrt is not installed (pip install 'vocabseg[gpu]', with an NVIDIA GPU)"
    try:
        choice = choose(name, device, precision, None, bundle)
        for graph in bundle.manifest.graphs if choice.device == "cpu" else ():
            bundle.graph(graph, choice.variant)
    except (BundleError, EngineError) as error:
        return str(error)
    return EngineSpec(bundle.folder, name, precision, vocabulary, settings, device)


def _oracle(
    bundle: Bundle,
    vocabulary: Vocabulary,
    weights: Weights | str,
    settings: tuple[str, ...],
    found: Sequence[Spec],
    device: str,
) -> tuple[Spec | None, str]:
    """What parity is measured against, and in words what and why."""
    if isinstance(weights, Weights):
        reference = _spec("torch-eager", "float32", bundle, vocabulary, weights, settings, device)
        if not isinstance(reference, str):
            whose = "the bundle's random weights" if weights.checkpoint is None else weights.checkpoint.name
            return reference, f"the PyTorch reference (export/reference.py) in float32 with {whose}"
    why = weights if isinstance(weights, str) else "PyTorch cannot run"
    engine = _spec("onnxruntime", "float32", bundle, vocabulary, weights, settings, device)
    if isinstance(engine, str):
        return None, f"nothing: {why}, and {engine}"
    if all(spec.name == engine.name for spec in found):
        return None, f"nothing: {why}, and ONNX Runtime is the only variant"
    return engine, f"ONNX Runtime in float32, not the PyTorch reference: {why}"


def _named(name: str, precision: str) -> str:
    return name if precision == "float32" else f"{name} {precision}"
