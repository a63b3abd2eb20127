"""What a benchmark measures: inputs, which variants can run here, why others cannot, and which one is the yardstick."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import msgspec

from vocabseg.benchmarks.datasets.voc import CLASSES as VOC_CLASSES
from vocabseg.benchmarks.scenes.files import write_scenes
from vocabseg.benchmarks.speed.engine import EngineSpec
from vocabseg.benchmarks.speed.pytorch import TorchSpec, Weights
from vocabseg.benchmarks.speed.results import VariantResult
from vocabseg.benchmarks.speed.variants import LIMITS, VariantSpec, variant_name
from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import sha256_file
from vocabseg.runtime.bundle.settings import apply_settings
from vocabseg.runtime.doctor import processor
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.engines.interface import QUANTISED
from vocabseg.runtime.engines.openvino import check_precision
from vocabseg.runtime.errors import BundleError, ConfigurationError, EngineError, ImageError
from vocabseg.runtime.images import IMAGE_SUFFIXES, load_image
from vocabseg.runtime.text.vocabulary import Vocabulary

TORCH = ("torch-eager", "torch-compile")
NAMES = (*TORCH, "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("float32", "bfloat16", "float16", *QUANTISED)
# What torch.compile needs one of.
COMPILERS = {"cpu": ("c++", "g++", "clang++"), "cuda": ("cc", "gcc", "clang")}


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds over all images, but no new run after `seconds`; batch sizes; how much of the rest.

    With 0 `scenes` no mean IoU is measured, with `cold` 0 no fresh process is started, with 0 `names` no text encoded.
    """

    repeat: int = 5
    seconds: float = 120.0
    batches: tuple[int, ...] = (1, 4)
    scenes: int = 40
    cold: int = 3
    names: int = 64


@dataclass(frozen=True)
class Benchmark:
    """Everything that is settled before anything is measured; `oracle` is what parity is measured against.

    `unmet` are those of `missing` that leave a wish unfulfilled: nothing else has that name, or that precision.
    """

    bundle: Bundle
    settings: tuple[str, ...]
    vocabulary: Vocabulary
    images: tuple[Path, ...]
    variants: tuple[VariantSpec, ...]
    missing: tuple[VariantResult, ...]
    oracle: VariantSpec | None
    oracle_reason: str
    effort: Effort
    device: str = "cpu"
    unmet: tuple[VariantResult, ...] = ()


def make_benchmark(
    bundle: Bundle,
    vocabulary: Vocabulary,
    images: Sequence[Path],
    weights: Weights | str,
    engine: str | None = None,
    against: Sequence[str] = (),
    precisions: Sequence[str] = (),
    settings: Sequence[str] = (),
    effort: Effort | None = None,
    device: str = "cpu",
) -> Benchmark:
    """The engine that `vocabseg.load` takes in each precision, then those of `against` in every one that they have.

    Without `precisions`, that engine runs in the precision `vocabseg.load` takes, and everything in float32. `weights`
    are the PyTorch ones, or a text that says why there are none. Raises ConfigurationError for names that do not exist
    and EngineError where no engine can run.
    """
    for name in against:
        known, at, limit = name.partition("@")
        if known not in NAMES:
            raise ConfigurationError(f"--against {name!r}: give some of {', '.join(NAMES)}")
        if at and limit not in LIMITS:
            raise ConfigurationError(f"--against {name!r}: behind the @ stands one of {', '.join(LIMITS)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ConfigurationError(f"--precision {precision!r}: give some of {', '.join(PRECISIONS)}")
    own = choose(engine, device, None, bundle.manifest.graph_bytes, bundle)
    if not vocabulary.plain:
        classes = zip(vocabulary.names, vocabulary.synonyms, vocabulary.examples, strict=False)
        odd = next((name for name, group, images in classes if len(group) > 1 or images), vocabulary.names[-1])
        raise ConfigurationError(
            f"class {odd!r} has more than one name: bench compares with PyTorch, which takes one text for each class"
        )
    device = own.device
    wanted = dict.fromkeys(
        (name, precision)
        for precision in precisions
        for name in (_engine_for(bundle, engine, device, precision, own.name), *against)
    )
    if not precisions:
        wanted = dict.fromkeys([(own.name, own.precision), *((name, "float32") for name in (own.name, *against))])
    specified = partial(_spec, bundle, vocabulary, weights, tuple(settings), device)
    specs = {pair: specified(*pair) for pair in wanted}
    found = [spec for spec in specs.values() if not isinstance(spec, str)]
    missing = {
        (name, precision): VariantResult(name=variant_name(name, precision), precision=precision, reason=spec)
        for (name, precision), spec in specs.items()
        if isinstance(spec, str)
    }
    if not found:
        raise EngineError(f"nothing can run here: {next(iter(missing.values())).reason}")
    met = {word for pair in specs.keys() - missing.keys() for word in pair}
    unmet = tuple(result for pair, result in missing.items() if not met.issuperset(pair))
    oracle, reason = _oracle(specified, weights, found)
    if oracle is not None and bundle.manifest.region.budgeted:
        reason += "; without the region budget"
    return Benchmark(
        bundle, tuple(settings), vocabulary, tuple(images), tuple(found), tuple(missing.values()), oracle, reason,
        effort or Effort(), device, unmet,
    )  # fmt: skip


def _engine_for(bundle: Bundle, engine: str | None, device: str, precision: str, usual: str) -> str:
    """The engine that `vocabseg.load` takes for a precision; the usual one where none has it, which then says why."""
    try:
        return choose(engine, device, precision, bundle.manifest.graph_bytes, bundle).name
    except (BundleError, EngineError):
        return usual


def _spec(
    bundle: Bundle,
    vocabulary: Vocabulary,
    weights: Weights | str,
    settings: tuple[str, ...],
    device: str,
    name: str,
    precision: str,
) -> VariantSpec | str:
    """The variant, or why it is not available."""
    name, _, limit = name.partition("@")
    if limit:
        reason = _unlimited(name, limit, device)
        if reason is not None:
            return reason
    if name in TORCH:
        reason = _unavailable(name == "torch-compile", device, precision)
        if reason is not None:
            return reason
        if isinstance(weights, str):
            return weights
        return TorchSpec(weights, precision, vocabulary, name == "torch-compile", device, limit)
    if name == "tensorrt" and device == "cpu" and find_spec("tensorrt") is None:
        return "the package tensorrt is not installed (pip install 'vocabseg[gpu]', with an NVIDIA GPU)"
    try:
        choice = choose(name, device, precision, None, bundle)
        if choice.name == "openvino":
            check_precision(precision)
        for graph in bundle.manifest.graphs if choice.device == "cpu" else ():
            bundle.graph(graph, choice.variant)
    except (BundleError, EngineError) as error:
        return str(error)
    return EngineSpec(bundle.folder, name, precision, vocabulary, settings, device, limit)


def _unlimited(name: str, limit: str, device: str) -> str | None:
    """Why a variant cannot be held to a limit; None where it can."""
    if device != "cpu":
        return "limits are for a CPU"
    if limit == "no-amx" and name == "onnxruntime":
        return "ONNX Runtime has no setting that keeps it from using AMX"
    if limit == "no-amx" and "amx_bf16" not in processor():
        return "this CPU has no AMX"
    return None


def _oracle(
    specified: Callable[[str, str], VariantSpec | str], weights: Weights | str, found: Sequence[VariantSpec]
) -> tuple[VariantSpec | None, str]:
    """What parity is measured against, and in words what and why."""
    if isinstance(weights, Weights):
        reference = specified("torch-eager", "float32")
        if not isinstance(reference, str):
            whose = "the bundle's random weights" if weights.checkpoint is None else weights.checkpoint.name
            return reference, f"the PyTorch reference (export/reference.py) in float32 with {whose}"
    why = weights if isinstance(weights, str) else "PyTorch cannot run"
    engine = specified("onnxruntime", "float32")
    if isinstance(engine, str):
        return None, f"nothing: {why}, and {engine}"
    if all(spec.name == engine.name for spec in found):
        return None, f"nothing: {why}, and ONNX Runtime is the only variant"
    return engine, f"ONNX Runtime in float32, not the PyTorch reference: {why}"


def default_images(folder: Path) -> list[Path]:
    """Write the packaged photo and three scenes of the procedural world into `folder`; returns their files."""
    photo = folder / "photo.jpg"
    with as_file(files("vocabseg.export") / "sample.jpg") as own:
        photo.write_bytes(own.read_bytes())
    return [photo, *write_scenes(folder, 3)]


def images_in(folder: Path, limit: int) -> list[Path]:
    """The first `limit` images of a folder, or the one image given; raises ImageError for none or broken ones."""
    if folder.is_file():
        found = [folder]
    elif folder.is_dir():
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[:limit]
    else:
        raise ImageError(f"--images {folder}: there is no such folder; give one with images")
    if not found:
        raise ImageError(f"--images {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); give another folder")
    for path in found:
        load_image(path)
    return found


def default_vocabulary(bundle: Bundle) -> Vocabulary:
    """The bundle's own names where it declares some, else PASCAL VOC's 20."""
    manifest = bundle.manifest
    if manifest.vocabulary is None:
        return Vocabulary(VOC_CLASSES)
    return Vocabulary(Vocabulary(manifest.vocabulary).names, manifest.seen)


def find_weights(
    bundle: Bundle, checkpoint: Path | None, config: str | None, clip: str | None, settings: Sequence[str]
) -> Weights | str:
    """The weights behind a bundle, or why there are none; raises ConfigurationError for a checkpoint of another bundle.

    Without `config`, the configuration is the one that the bundle's provenance records.
    """
    if not _installed():
        if checkpoint is not None:
            raise ConfigurationError("--checkpoint needs PyTorch: pip install 'vocabseg[export]'")
        return "PyTorch is not installed (pip install 'vocabseg[export]')"
    from vocabseg.export.configuration import Configuration, load_configuration

    if not bundle.manifest.has_queries:
        reason = "the PyTorch reference is of the published proposal network, and this bundle has another one"
        if checkpoint is not None:
            raise ConfigurationError(f"--checkpoint: {reason}; leave it out")
        return reason
    provenance = bundle.manifest.provenance
    drawn = str(provenance.get("weights", "")).startswith("random")
    if checkpoint is None and not drawn:
        return "the weights were not given (--checkpoint FILE)"
    if checkpoint is not None:
        _check_checkpoint(bundle, checkpoint)
    if config is not None:
        configuration = load_configuration(config)
    elif "configuration" in provenance:
        try:
            configuration = msgspec.convert(provenance["configuration"], Configuration)
        except msgspec.ValidationError as error:
            raise ConfigurationError(
                f"the bundle records a configuration of another kind ({error}): give --config"
            ) from None
    else:
        raise ConfigurationError("--checkpoint needs --config NAME: the bundle does not record its configuration")
    return Weights(apply_settings(configuration, settings), checkpoint, clip)


def _check_checkpoint(bundle: Bundle, checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise ConfigurationError(f"there is no checkpoint {checkpoint}: give the path of its file")
    recorded = bundle.manifest.provenance.get("weights_sha256")
    if recorded is not None and sha256_file(checkpoint) != recorded:
        raise ConfigurationError(
            f"{checkpoint} is not the checkpoint that {bundle.folder} was exported from "
            f"({bundle.manifest.provenance.get('weights')}): give that one"
        )


def _unavailable(compiled: bool, device: str, precision: str) -> str | None:
    """Why PyTorch, compiled or not, cannot run on that device in that precision; None where it can."""
    if not _installed():
        return "PyTorch is not installed (pip install 'vocabseg[export]')"
    if precision in QUANTISED:
        return f"the reference has no {precision} form: it is made of a bundle's graphs (vocabseg calibrate)"
    if device == "cpu" and precision == "float16":
        return "PyTorch's float16 is measured on a GPU only: CPUs compute it slowly"
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            return "the installed PyTorch sees no GPU: install it with CUDA"
    if compiled and not any(shutil.which(name) for name in COMPILERS["cpu" if device == "cpu" else "cuda"]):
        return "torch.compile needs a C++ compiler: install g++"
    return None


def _installed() -> bool:
    return all(find_spec(module) is not None for module in ("torch", "open_clip"))
