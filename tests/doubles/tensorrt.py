"""`tensorrt` without TensorRT: the part of it that vocabseg uses, over the emulated GPU, for tests alone.

A plan is the ONNX graph itself with its profiles, run by ONNX Runtime on the CPU when its stream gets there. Members
and parameters are TensorRT's, which test_types.py compares with the genuine bindings; rules of its use that cost wrong
results or crashes on a GPU are asserted here.
"""

import contextlib
import enum
import math
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.fake_driver.machine import current

MAGIC = b"double"
# What a builder logs of its kernels, as TensorRT for RTX 1.7.1 writes it (shortened).
KERNELS = (
    "Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: \n"
    "Name: node_Conv_326_myl0_1, LayerType: correlation, Inputs: [ { Name: crops, Datatype: Int8, Format: (NHWC) "
    "Channel major format }], Constants: [ { Name: c, Datatype: Float }], Outputs: [ { Name: relu, Datatype: Half }], "
    "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: node_Conv_326][ONNX Layer: node_relu]",
    "Name: _gemm_mha_v2_myl0_2, LayerType: kgen, Inputs: [ { Name: q, Datatype: Half }], Outputs: [ { Name: o, "
    "Datatype: Half }], TacticName: _gemm_mha_v2_0x1, StreamId: 0, Metadata: [ONNX Layer: node_matmul]",
    "Name: __myl_Tran_myl1_3, LayerType: kgen, Inputs: [ { Name: a, Datatype: Half }], Outputs: [ { Name: b, "
    "Datatype: Half }], TacticName: x, StreamId: 0, Metadata: ",
    "Total Activation Memory: 13565952 bytes",
    "Total Weights Memory: 2720576 bytes",
)
VERSION = "11.4.0.106"

# What goes wrong: "start" (text), "parser" ([(node, operator, text)]), "build", "context", "capture", "run" (texts);
# "slow": seconds per step of a build.
faults: dict[str, object] = {}
# What was called, for tests to look at: flags, levels, contexts, host code.
seen: dict[str, list[object]] = {}


def note(what: str, value: object) -> None:
    seen.setdefault(what, []).append(value)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0


class BuilderFlag(enum.Enum):
    TF32 = enum.auto()
    VERSION_COMPATIBLE = enum.auto()
    EXCLUDE_LEAN_RUNTIME = enum.auto()


class MemoryPoolType(enum.Enum):
    WORKSPACE = enum.auto()


class PreviewFeature(enum.Enum):
    RUNTIME_ACTIVATION_RESIZE_10_10 = enum.auto()


class HardwareCompatibilityLevel(enum.Enum):
    NONE = enum.auto()
    AMPERE_PLUS = enum.auto()
    SAME_COMPUTE_CAPABILITY = enum.auto()


class ExecutionContextAllocationStrategy(enum.Enum):
    USER_MANAGED = enum.auto()


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = enum.auto()
    DETAILED = enum.auto()


class LayerType(enum.Enum):
    CONVOLUTION = enum.auto()


class TensorIOMode(enum.Enum):
    INPUT = enum.auto()
    OUTPUT = enum.auto()


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"
    INT64 = "int64"
    BF16 = "bfloat16"


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self.made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    pass


class ITimingCache:
    def __init__(self, data: bytes):
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data + b"+")


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("the shape provided is inconsistent")
        self.shapes[input] = (min, opt, max)


class IBuilderConfig:
    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.flags = {BuilderFlag.TF32}  # on by default
        self.profiles: list[IOptimizationProfile] = []
        self.cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        note("preview", (feature.name, enable))

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        note("pool", (pool.name, pool_size))

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.data.startswith(b"foreign"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.cache


class INetworkDefinition:
    _model: object = None
    num_layers = 0


class ParserError:
    def __init__(self, node: str, operator: str, text: str):
        self._node, self._operator, self._text = node, operator, text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger):
        self._network, self._errors = network, [ParserError(*fault) for fault in faults.get("parser", [])]

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        import onnx

        if self._errors:
            return False
        self._network._model = onnx.load(model)  # with its weights
        return True


class Builder:
    _version = VERSION

    def __init__(self, logger: ILogger):
        assert logger.made, "a subclass must call ILogger.__init__"
        assert current().contexts, "no CUDA context is current in this thread"
        self._logger = logger
        if "start" in faults:
            logger.log(ILogger.Severity.ERROR, str(faults["start"]))

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        assert BuilderFlag.TF32.name not in {flag.name for flag in config.flags}
        note("config", config)
        if not self._phases(config.progress_monitor):
            return None
        if "build" in faults:
            self._logger.log(ILogger.Severity.WARNING, "something of no consequence")
            self._logger.log(ILogger.Severity.ERROR, str(faults["build"]))
            return None
        names = [value.name for value in network._model.graph.input]
        for profile in config.profiles:
            assert list(profile.shapes) == names, "a profile needs every dynamic input"
        flags = sorted(flag.name for flag in config.flags)
        assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
        for line in KERNELS:
            self._logger.log(ILogger.Severity.VERBOSE, line)
        content = {
            "version": self._version,
            "profiles": [profile.shapes for profile in config.profiles],
            "flags": flags,
            "model": network._model.SerializeToString(),
        }
        return IHostMemory(MAGIC + msgspec.msgpack.encode(content))

    def _phases(self, monitor: IProgressMonitor | None) -> bool:
        """Nested phases, as the real builder reports them; False when it is told to stop."""
        assert getattr(monitor, "made", False), "a subclass must call IProgressMonitor.__init__"
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            monitor.phase_start("Tactics", "Building Engine", 4)
            for inner in range(4):
                time.sleep(float(faults.get("slow", 0)))
                if not monitor.step_complete("Tactics", inner):
                    return False
            monitor.phase_finish("Tactics")
            if not monitor.step_complete("Building Engine", step):
                return False
        monitor.phase_finish("Building Engine")
        return True


class Runtime:
    def __init__(self, logger: ILogger):
        assert current().contexts, "no CUDA context is current in this thread"
        self._logger = logger
        self._version = VERSION
        self._host_code = False
        if "start" in faults:
            logger.log(ILogger.Severity.ERROR, str(faults["start"]))

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        assert "start" not in faults, "this would crash"
        note("host code", allowed)
        self._host_code = allowed

    def load_runtime(self, path: str) -> "Runtime | None":
        text = Path(path).read_text()
        if not text[:1].isdigit():
            self._logger.log(ILogger.Severity.ERROR, "it is no library of TensorRT")
            return None
        loaded = Runtime(self._logger)
        loaded._version = text
        return loaded

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        if not serialized_engine.startswith(MAGIC):
            self._logger.log(ILogger.Severity.ERROR, "Magic tag does not match")
            return None
        content = msgspec.msgpack.decode(serialized_engine[len(MAGIC) :])
        if content["version"] != self._version:
            self._logger.log(ILogger.Severity.ERROR, f"Version tag does not match: expected {self._version}")
            return None
        return ICudaEngine(content, self._logger)


class ICudaEngine:
    def __init__(self, content: dict, logger: ILogger):
        import onnx
        import onnxruntime

        self._logger, self._profiles = logger, content["profiles"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        # ONNX Runtime's layout optimisation for CPUs cannot take FP16 convolutions.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = onnxruntime.InferenceSession(content["model"], options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(content["model"]).graph
        self._values = [(value, TensorIOMode.INPUT) for value in graph.input]
        self._values += [(value, TensorIOMode.OUTPUT) for value in graph.output]

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, index: int) -> str:
        return self._values[index][0].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return next(mode for value, mode in self._values if value.name == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        from onnx.helper import tensor_dtype_to_np_dtype

        value = next(value for value, _ in self._values if value.name == name)
        return DataType(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert self.get_tensor_mode(name) is TensorIOMode.INPUT
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        shapes = self._profiles[profile_index].values()
        return 64 * sum(math.prod(largest) for _, _, largest in shapes)

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> "IExecutionContext | None":
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if "context" in faults:
            self._logger.log(ILogger.Severity.ERROR, str(faults["context"]))
            return None
        note("contexts", None)
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine):
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._stream: int | None = None
        self._ran = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert not self._shapes, "the profile comes before the shapes"
        assert stream_handle != 0
        self._profile, self._stream = profile_index, stream_handle
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        assert not self._ran, "shapes must not change once a graph may have been captured"
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [
            value.name
            for value, mode in self._engine._values
            if mode is TensorIOMode.INPUT and value.name not in self._shapes
        ]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """By running the graph once on zeros, which needs no other knowledge of it."""
        values = {key: self._array(key) for key in self._shapes}
        return self._engine._session.run([name], values)[0].shape

    def _array(self, name: str) -> np.ndarray:
        return np.zeros(self._shapes[name], self._engine.get_tensor_dtype(name).value)

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes()
        return 64 * sum(map(math.prod, self._shapes.values()))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == self._stream, "another stream than the profile was set on"
        machine = current()
        capturing = machine.capturing(stream_handle)
        fault = faults.get("capture" if capturing else "run")
        if capturing and not self._ran:
            fault = "initialisation cannot be captured"
        if fault:
            self._engine._logger.log(ILogger.Severity.ERROR, str(fault))
            return False
        assert len(self._addresses) == self._engine.num_io_tensors
        addresses, memory, shapes, session = (
            dict(self._addresses),
            self._memory,
            dict(self._shapes),
            self._engine._session,
        )
        note("captured" if capturing else "enqueued", dict(shapes))

        def work() -> None:
            machine.bytes(*memory)[:] = 0xAB  # fails where the memory was given back
            inputs = {}
            for name, shape in shapes.items():
                dtype = np.dtype(self._engine.get_tensor_dtype(name).value)
                data = machine.bytes(addresses[name], math.prod(shape) * dtype.itemsize)
                inputs[name] = data.view(dtype).reshape(shape).copy()
            names = [value.name for value, mode in self._engine._values if mode is TensorIOMode.OUTPUT]
            for name, result in zip(names, session.run(names, inputs), strict=True):
                data = np.ascontiguousarray(result)
                machine.bytes(addresses[name], data.nbytes)[:] = data.reshape(-1).view(np.uint8)

        machine.put(stream_handle, work)
        self._ran = True
        return True


@contextlib.contextmanager
def installed(
    package: str = "tensorrt", version: str = VERSION, classes: dict[str, type] | None = None, **wrong: object
):
    """While this lasts, `package` (see FAMILIES) is this double, and no other is there.

    `classes` take the place of those here, or come beside them.
    """
    from vocabseg.runtime.engines.tensorrt.package import FAMILIES

    module = types.ModuleType(package)
    module.__dict__.update({name: value for name, value in globals().items() if isinstance(value, type)})
    module.__dict__.update(classes or {})
    module.__version__ = version
    module.__spec__ = ModuleSpec(package, None)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for family in FAMILIES.values() for name in family.modules]:
            patch.setitem(sys.modules, name, module if name == package else None)
        faults.clear()
        faults.update(wrong)
        seen.clear()
        yield sys.modules[__name__]
        faults.clear()
