"""TensorRT for RTX compiles a plan's kernels on the GPU that runs it: how, and the file that keeps them."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabseg.runtime.bundle.plans import PackageInfo, Plan
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.engines.tensorrt.messages import Messages
from vocabseg.runtime.engines.tensorrt.package import Package
from vocabseg.runtime.errors import EngineError, OutputError
from vocabseg.runtime.files import atomic_write, cache_folder

if TYPE_CHECKING:
    import tensorrt_rtx


class CompiledKernels:
    """The kernels of one plan on one GPU model, read from and written to a file of the cache folder.

    A file that cannot be read, or that is of another version, GPU model or driver, is ignored: TensorRT for RTX checks
    that itself. Without a cache folder, kernels are compiled anew in each process.
    """

    def __init__(self, cache: "tensorrt_rtx.IRuntimeCache", path: Path | None):
        self.cache, self._path = cache, path
        self._written = 0
        with suppress(OSError):
            if path is not None and path.is_file():
                data = path.read_bytes()
                if cache.deserialize(data):
                    self._written = len(data)

    def save(self) -> None:
        """Write the file if kernels were added; where that fails, the next process only takes longer."""
        if self._path is None:
            return
        data = memoryview(self.cache.serialize())
        if data.nbytes == self._written:
            return
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as file:
                file.write(data)
            self._written = data.nbytes


def compiling_contexts(
    package: Package, engine: Any, plan: Plan, device: Device
) -> "tuple[Callable[[], tensorrt_rtx.IExecutionContext], CompiledKernels]":
    """What makes execution contexts of a plan, and its compiled kernels.

    Kernels are compiled for the shapes of a context before its first run goes on (EAGER). With LAZY, slower kernels
    would stand in meanwhile, and a CUDA graph captured then would keep them. CUDA graphs are captured by
    `ShapedContext`, so TensorRT for RTX does not capture its own.
    """
    rtx = package.rtx
    config: tensorrt_rtx.IRuntimeConfig = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
    config.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = rtx.CudaGraphStrategy.DISABLED
    kernels = CompiledKernels(config.create_runtime_cache(), kernels_file(package.info, plan, device))
    config.set_runtime_cache(kernels.cache)
    return lambda: engine.create_execution_context(config), kernels


def kernels_file(package: PackageInfo, plan: Plan, device: Device) -> Path | None:
    """Where a plan's compiled kernels are kept; None without a cache folder."""
    folder = cache_folder()
    name = f"{device.key}-{package.version}-{plan.record.sha256[:16]}.kernels"
    return None if folder is None else folder / "tensorrt-rtx" / name


def check_validity(
    runtime: "tensorrt_rtx.Runtime", rtx: Any, messages: Messages, data: bytes, name: str, command: str
) -> None:
    """Raise EngineError where the header of a plan says that it cannot run here."""
    messages.clear()
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity != rtx.EngineValidity.INVALID:
        return
    reasons = [
        reason.replace("_", " ").lower()
        for reason, bit in rtx.EngineInvalidityDiagnostics.__members__.items()
        if int(diagnostics) & int(bit)
    ]
    why = ", ".join(reasons) or messages.reason()
    raise EngineError(f"TensorRT for RTX cannot run {name} here ({why}): run `{command}`")
