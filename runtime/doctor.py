"""What is installed on this machine, which engine would run here and why, and what the others lack."""

import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.engines import choose as engines
from vocabseg.runtime.errors import EngineError, VocabsegError
from vocabseg.runtime.threads import thread_count

# Package -> what it is for, and how to install it.
PACKAGES = {
    "numpy": "arrays",
    "opencv-python-headless": "pictures",
    "openvino": "CPU engine: pip install 'vocabseg[cpu]'",
    "onnxruntime": "CPU engine: pip install 'vocabseg[cpu]'",
    "torch": "export: pip install 'vocabseg[export]'",
    "open_clip_torch": "export: pip install 'vocabseg[export]'",
    "onnx": "export: pip install 'vocabseg[export]'",
    "onnxscript": "export: pip install 'vocabseg[export]'",
    "ray": "vocabseg batch: pip install 'vocabseg[batch]'",
    "tritonclient": "vocabseg.client: pip install 'vocabseg[serving]'",
    "supervision": "optional: Result.to_detections(): pip install supervision",
}


class Finding(msgspec.Struct, frozen=True):
    """One line of the report: what was looked for, whether it is fine, and what was found or is missing."""

    what: str
    fine: bool
    text: str


def examine(folder: Path | None = None) -> list[Finding]:
    """Look at this machine, and at the bundle in `folder` (None: the demo model).

    Nothing heavy is imported, nothing is written, and no GPU is opened where there is none. Raises BundleError.
    """
    bundle = open_bundle(folder, verify=False)
    findings = []
    for what, look in (*_checks(), *_of_bundle(bundle, "the demo model" if folder is None else bundle.manifest.name)):
        try:
            findings.append(Finding(what, True, look()))
        except EngineError as error:
            findings.append(Finding(what, False, str(error)))
    return findings


def _checks() -> Iterator[tuple[str, Callable[[], str]]]:
    """What is looked for, and what finds it or raises EngineError."""
    yield "python", _python
    yield "processor", processor
    yield "memory", _memory
    yield "cache", _cache
    yield "host kernels", _host_kernels
    for package, purpose in PACKAGES.items():
        yield package, partial(_package, package, f"not installed ({purpose})")
    for offer in engines.ON_CPU:
        yield f"engine {offer.name}", partial(_cpu_engine, offer)
    yield "telemetry", _telemetry
    yield "GPU", _gpu
    yield "CUDA kernels", _cuda_kernels
    yield (
        "pycuda",
        partial(_package, "pycuda", "not installed (the GPU's memory and streams: pip install 'vocabseg[gpu]')"),
    )
    yield "CUDA graphs", _cuda_graphs
    yield "engine tensorrt on the GPU", partial(_tensorrt, "tensorrt", "`vocabseg build` makes a bundle's plans")
    yield "engine tensorrt-rtx on the GPU", partial(_tensorrt, "tensorrt-rtx", "it builds plans without a GPU")
    yield "engine onnxruntime on the GPU", _onnxruntime_gpu
    yield "engine used here", _choice


def _python() -> str:
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def _package(name: str, missing: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise EngineError(missing) from None


def _host_kernels() -> str:
    from vocabseg.runtime.kernels import load_kernels

    return f"built, {thread_count()} threads, instruction set {load_kernels('host').variant()}"


def _cpu_engine(offer: engines.Offer) -> str:
    if not engines.installed(offer.name):
        raise EngineError(f"package {offer.name} is missing: pip install 'vocabseg[cpu]'")
    return f"can run here in {' or '.join(offer.precisions)}"


def _telemetry() -> str:
    value = os.environ.get("ORT_DISABLE_TELEMETRY")
    if value != "1":
        raise EngineError(
            f"ONNX Runtime may keep some: ORT_DISABLE_TELEMETRY is {value!r}; 1, the default here, stops it"
        )
    return "none: ORT_DISABLE_TELEMETRY=1 stops that of ONNX Runtime"


def _gpu() -> str:
    from vocabseg.runtime.cuda.device import open_device
    from vocabseg.runtime.cuda.driver import megabytes

    if not engines.gpu_present():
        raise EngineError("no NVIDIA GPU was found (or CUDA_VISIBLE_DEVICES hides it)")
    device = open_device(0)
    driver = f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}"
    free = megabytes(device.memory()["free"])
    return f"{device.name} ({device.key}), {free} of {megabytes(device.total_memory)} free, driver for CUDA {driver}"


def _cuda_kernels() -> str:
    from vocabseg.runtime.kernels.device.face import CudaKernels
    from vocabseg.runtime.kernels.device.fatbin import kernels_fatbin

    size = len(kernels_fatbin())
    if not engines.gpu_present():
        return f"built ({size // 1000} kB)"
    from vocabseg.runtime.cuda.device import open_device

    CudaKernels(open_device(0))
    return f"built ({size // 1000} kB), and they load on this GPU"


def _cuda_graphs() -> str:
    return f"through cuda-bindings {_package('cuda-bindings', 'not used, which is slower: pip install cuda-bindings')}"


def _tensorrt(engine: str, remark: str) -> str:
    from vocabseg.runtime.engines.tensorrt.package import load_package

    info = load_package(engine).info
    return f"{info.title} {info.version} ({info.kind}); {remark}"


def _onnxruntime_gpu() -> str:
    from vocabseg.runtime.engines.onnxruntime_cuda import check_provider

    check_provider()
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__} with its CUDA provider"


def _choice() -> str:
    choice = engines.choose()
    return f"{choice.name} on {choice.device} in {choice.precision}, because {choice.reason}"


def _of_bundle(bundle: Bundle, name: str) -> Iterator[tuple[str, Callable[[], str]]]:
    yield f"engine of {name}", partial(_bundle_choice, bundle)
    if bundle.manifest.weights_license is not None:
        yield f"weights of {name}", lambda: f"under {bundle.manifest.weights_license}"


def _bundle_choice(bundle: Bundle) -> str:
    choice = engines.choose(model_bytes=bundle.manifest.graph_bytes, bundle=bundle)
    return f"{choice.name} on {choice.device} in {choice.precision}, because {choice.reason}"


def _memory() -> str:
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        sizes = {words[0]: int(words[1]) for words in lines}  # in KiB
        total, free = sizes["MemTotal:"], sizes["MemAvailable:"]
    except (OSError, ValueError, KeyError, IndexError):
        return "unknown"  # only Linux tells in this way
    return f"{free / 2**20:.1f} of {total / 2**20:.1f} GiB free"


def _cache() -> str:
    from vocabseg.runtime.files import CACHE_VARIABLE, cache_folder, check_folder

    folder = cache_folder()
    if folder is None:
        return f"text embeddings are not kept, since {CACHE_VARIABLE} is empty"
    try:
        check_folder(folder)
    except VocabsegError as error:
        raise EngineError(f"text embeddings are not kept: {error}; or set {CACHE_VARIABLE} to another one") from None
    return f"text embeddings are kept in {folder}"


def processor() -> str:
    """This machine's processor, in words."""
    name = platform.processor() or platform.machine()
    features: list[str] = []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in info.read_text().splitlines())
        }
        name = lines.get("model name", name)
        flags = set(lines.get("flags", "").split())
        features = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags]
    return f"{name}, {os.cpu_count()} logical CPUs" + (f" ({', '.join(features)})" if features else "")
