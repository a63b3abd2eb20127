"""`tensorrt_rtx` for runs on the emulated GPU: what it has beside `tensorrt`, over the double of that.

The genuine builder runs on any machine and needs no double (test_genuine_builder.py); opening a plan needs a GPU.
Members and parameters are compared with the genuine bindings in test_types.py.
"""

import contextlib
import enum
from collections.abc import Iterator

from tests.doubles import tensorrt as base
from tests.doubles.tensorrt import ILogger, faults, note

VERSION = "1.7.1.116"
CACHE = b"kernels of "


class ComputeCapability(enum.Enum):
    SM75 = enum.auto()
    SM80 = enum.auto()
    SM86 = enum.auto()
    SM89 = enum.auto()
    SM120 = enum.auto()
    SM121 = enum.auto()


class BuilderFlag(enum.Enum):
    TF32 = enum.auto()
    VERSION_COMPATIBLE = enum.auto()
    REQUIRE_USER_ALLOCATION = enum.auto()


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class IRuntimeCache:
    """Counts the contexts whose kernels it holds."""

    def __init__(self) -> None:
        self.compiled = 0

    def serialize(self) -> base.IHostMemory:
        return base.IHostMemory(CACHE + bytes(self.compiled))

    def deserialize(self, blob: bytes) -> bool:
        note("cache", bytes(blob))
        if not blob.startswith(CACHE):
            return False
        self.compiled = len(blob) - len(CACHE)
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cuda_graph_strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._allocation: base.ExecutionContextAllocationStrategy | None = None
        self._cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: base.ExecutionContextAllocationStrategy) -> None:
        self._allocation = strategy


class IBuilderConfig(base.IBuilderConfig):
    def __init__(self) -> None:
        super().__init__()
        self.flags = {BuilderFlag.TF32}
        self.num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        assert index < self.num_compute_capabilities
        note("generations", compute_capability.name)
        return True


class Builder(base.Builder):
    _version = VERSION

    def __init__(self, logger: ILogger):
        self._logger = logger  # no GPU, no context

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()


class Runtime(base.Runtime):
    def __init__(self, logger: ILogger):
        super().__init__(logger)
        self._version = VERSION

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        wrong = faults.get("validity")
        return (EngineValidity.VALID, 0) if wrong is None else (EngineValidity.INVALID, int(wrong))

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        engine = super().deserialize_cuda_engine(serialized_engine)
        if engine is not None:
            engine.__class__ = ICudaEngine
        return engine


class ICudaEngine(base.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> "IExecutionContext":
        """Only with kernels that are compiled before the first run, and no CUDA graphs of its own."""
        assert runtime_config._allocation is base.ExecutionContextAllocationStrategy.USER_MANAGED
        eager = DynamicShapesKernelSpecializationStrategy.EAGER
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy is eager
        assert runtime_config.cuda_graph_strategy is CudaGraphStrategy.DISABLED
        assert runtime_config._cache is not None
        runtime_config._cache.compiled += 1
        return IExecutionContext(self)


class IExecutionContext(base.IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == self._stream
        return "not capturable" not in faults


@contextlib.contextmanager
def installed(package: str = "tensorrt_rtx_bindings", version: str = VERSION) -> Iterator[None]:
    """While this lasts, `package` is this double, and no other of TensorRT's is there."""
    classes = {name: value for name, value in globals().items() if isinstance(value, type)}
    with base.installed(package, version, classes):
        yield
