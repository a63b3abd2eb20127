"""Graphs on a GPU through TensorRT or TensorRT for RTX: plans of `vocabseg build`, with device pointers in and out."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.bundle.manifest import TensorRecord
from vocabseg.runtime.bundle.plans import (
    Profile,
    Range,
    build_command,
    find_plan,
    lean_library,
    load_plan,
    plan_variant,
    profile_options,
)
from vocabseg.runtime.cuda.arrays import DeviceArray
from vocabseg.runtime.cuda.device import Device
from vocabseg.runtime.cuda.streams import Stream
from vocabseg.runtime.engines.tensorrt.context import Shape, ShapedContext, Shapes
from vocabseg.runtime.engines.tensorrt.jit import CompiledKernels, check_validity, compiling_contexts
from vocabseg.runtime.engines.tensorrt.messages import Messages, check_started, make_logger
from vocabseg.runtime.engines.tensorrt.package import Bindings, Package
from vocabseg.runtime.engines.tensorrt.scratch import SharedScratch
from vocabseg.runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt

# Contexts, one per stream and set of shapes; the one that was not used for longest goes first.
CONTEXTS_KEPT = 32

# TensorRT's element types by name; those that NumPy lacks are never inputs or outputs of our graphs.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class TensorRtGraph:
    """The plan of one of a bundle's graphs in one precision, opened on `device`.

    `package` is TensorRT's or that of TensorRT for RTX; `scratch` is shared with the other graphs of the same device.
    Raises EngineError, in one line with the command that helps, where no plan fits this machine, or a plan is damaged.
    """

    def __init__(
        self, bundle: Bundle, graph: str, precision: str, device: Device, scratch: SharedScratch, package: Package
    ):
        info, trt = package.info, package.trt
        plan = find_plan(bundle, graph, precision, device, info)
        self.name = graph
        self._info = info
        self._bundle, self._precision, self._device, self._scratch = bundle, precision, device, scratch
        record = bundle.graph(graph, plan_variant(precision))
        self._inputs, self._outputs = record.inputs, record.outputs
        command = build_command(bundle, precision, engine=info.engine)
        data = load_plan(plan, command)
        logger, self._messages = make_logger(trt)
        foreign = plan.record.tensorrt != info.version or info.kind == "dispatch"
        with device.activate():
            self._runtime = open_runtime(package, logger, self._messages, str(lean_library()) if foreign else None)
            if package.rtx is not None:
                check_validity(self._runtime, package.rtx, self._messages, data, plan.name, command)
            self._messages.clear()
            engine = self._runtime.deserialize_cuda_engine(data)
            if engine is None:
                raise EngineError(f"{info.title} cannot open {plan.name}: {self._messages.reason()}: run `{command}`")
            self._engine: tensorrt.ICudaEngine | None = engine
            self.input_dtypes, self.output_dtypes = _dtypes(trt, engine)
            self._kernels: CompiledKernels | None = None
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._make_context: Any = lambda: engine.create_execution_context(strategy)
            if package.rtx is not None:
                self._make_context, self._kernels = compiling_contexts(package, engine, plan, device)
            self._profiles = _profiles(engine, list(self.input_dtypes))
        for found, wanted in ((self.input_dtypes, record.inputs), (self.output_dtypes, record.outputs)):
            expected = {tensor.name: np.dtype(tensor.dtype) for tensor in wanted}
            if dict(found) != expected:
                raise EngineError(
                    f"{plan.name} has {_describe(found)}, its graph has {_describe(expected)}: run `{command}`"
                )
        self._contexts: OrderedDict[tuple[int, tuple[Shape, ...]], ShapedContext] = OrderedDict()

    def run(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: Stream) -> None:
        """Enqueue the graph on `stream`, reading `inputs` and filling `outputs`, all of them arrays on the device.

        The first run of new shapes is waited for. Arrays that come again at the same addresses replay a CUDA graph.
        Raises EngineError for arrays that do not fit, for shapes outside the plan's profiles (with the command that
        widens them), and when TensorRT cannot run.
        """
        engine = self._engine
        if engine is None:
            raise EngineError(f"{self.name} was closed: open it again")
        if stream.handle == 0:
            raise EngineError(f"{self.name} must not run on the default stream: give it a stream of its own")
        _check_names("input", inputs, self.input_dtypes)
        _check_names("output", outputs, self.output_dtypes)
        shapes = {name: tuple(inputs[name].shape) for name in self.input_dtypes}
        with self._device.activate(), self._scratch.lock:
            context = self._context(engine, shapes, stream)
            for name, shape in context.outputs.items():
                if tuple(outputs[name].shape) != shape:
                    raise EngineError(f"output {name} has shape {tuple(outputs[name].shape)}, the graph gives {shape}")
            scratch = self._scratch.block(context.need, stream)
            addresses = tuple((name, array.pointer) for name, array in (*inputs.items(), *outputs.items()))
            if context.run(addresses, scratch) and self._kernels is not None:
                self._kernels.save()

    @property
    def largest_batch(self) -> int:
        """The largest batch that the plan was built for."""
        return max(high for profile in self._profiles for high in _batches(self._inputs, profile))

    def close(self) -> None:
        """Wait for what was enqueued, and free the plan and its contexts; the scratch memory stays."""
        with self._device.activate(), self._scratch.lock:
            for context in self._contexts.values():
                context.close()
            self._contexts.clear()
            self._engine = self._make_context = None

    def _context(self, engine: "tensorrt.ICudaEngine", shapes: Shapes, stream: Stream) -> ShapedContext:
        key = (stream.handle, tuple(shapes.values()))
        if key in self._contexts:
            self._contexts.move_to_end(key)
            return self._contexts[key]
        profile = self._profile(shapes)
        context = ShapedContext(
            self.name, engine, self._make_context, profile, shapes, list(self.output_dtypes), stream, self._messages
        )
        if len(self._contexts) >= CONTEXTS_KEPT:
            self._contexts.popitem(last=False)[1].close()
        self._contexts[key] = context
        return context

    def _profile(self, shapes: Shapes) -> int:
        """The profile that allows these shapes; of several, the one tuned for the nearest."""
        for record in self._inputs:
            if not _fits(shapes[record.name], record.shape):
                wanted = "(" + ", ".join(map(str, record.shape)) + ")"
                raise EngineError(f"input {record.name} has shape {shapes[record.name]}, {self.name} takes {wanted}")
        allowed = [
            index
            for index, profile in enumerate(self._profiles)
            if all(_within(shapes[name], limits) for name, limits in profile.items())
        ]
        if allowed:
            return min(allowed, key=lambda index: _distance(shapes, self._profiles[index]))
        raise EngineError(self._too_small(shapes))

    def _too_small(self, shapes: Shapes) -> str:
        nearest = min(range(len(self._profiles)), key=lambda index: _distance(shapes, self._profiles[index]))
        widened = [dict(profile) for profile in self._profiles]
        limits = widened[nearest]
        for name, shape in shapes.items():
            limits[name] = Range(
                min=[min(pair) for pair in zip(limits[name].min, shape, strict=True)],
                opt=limits[name].opt,
                max=[max(pair) for pair in zip(limits[name].max, shape, strict=True)],
            )
        options = profile_options(self.name, widened, self._inputs)
        asked = ", ".join(f"{name} {_times(shape)}" for name, shape in shapes.items())
        built = " or ".join(_span(profile) for profile in self._profiles)
        command = build_command(self._bundle, self._precision, options, self._info.engine)
        return f"the plan of {self.name} was built for {built}, not for {asked}: widen it with `{command}`"


def open_runtime(
    package: Package, logger: "tensorrt.ILogger", messages: Messages, lean: str | None = None
) -> "tensorrt.Runtime":
    """The package's runtime; with `lean` the one of that library."""
    messages.clear()
    try:
        runtime = package.trt.Runtime(logger)
    except TypeError as error:  # what its bindings raise where CUDA does not start
        raise EngineError(f"{package.info.title}'s runtime does not start: {messages.reason(str(error))}") from None
    check_started(runtime, f"{package.info.title}'s runtime", messages)
    # A plan could carry code of the host; nothing that comes out of a file is run.
    runtime.engine_host_code_allowed = False
    if lean is None:
        return runtime
    loaded = runtime.load_runtime(lean)
    if loaded is None:
        raise EngineError(f"TensorRT cannot load {lean}: {messages.reason()}")
    loaded.engine_host_code_allowed = False
    return loaded


def _dtypes(trt: Bindings, engine: "tensorrt.ICudaEngine") -> tuple[dict[str, np.dtype[Any]], dict[str, np.dtype[Any]]]:
    """The element types of inputs and of outputs, by name."""
    inputs: dict[str, np.dtype[Any]] = {}
    outputs: dict[str, np.dtype[Any]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise EngineError(
                f"the plan's {name} has the type {kind}, which is none that arrays here have: build it again"
            )
        target = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        target[name] = np.dtype(DTYPES[kind])
    return inputs, outputs


def _profiles(engine: "tensorrt.ICudaEngine", inputs: Sequence[str]) -> list[Profile]:
    profiles = []
    for index in range(engine.num_optimization_profiles):
        profile: Profile = {}
        for name in inputs:
            low, tuned, high = engine.get_tensor_profile_shape(name, index)
            profile[name] = Range(min=list(low), opt=list(tuned), max=list(high))
        profiles.append(profile)
    return profiles


def _check_names(what: str, arrays: Mapping[str, DeviceArray], dtypes: Mapping[str, np.dtype[Any]]) -> None:
    if arrays.keys() != dtypes.keys():
        raise EngineError(f"the graph has the {what}s {', '.join(dtypes)}, given are {', '.join(arrays) or 'none'}")
    for name, dtype in dtypes.items():
        if arrays[name].dtype != dtype:
            raise EngineError(f"{what} {name} is {arrays[name].dtype}, the plan has {dtype}: convert it first")


def _batches(inputs: Sequence[TensorRecord], profile: Profile) -> list[int]:
    """What a profile allows for the dimension that the graph calls "batch"."""
    return [
        size
        for record in inputs
        for part, size in zip(record.shape, profile[record.name].max, strict=True)
        if part == "batch"
    ]


def _fits(shape: Shape, wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(
        size > 0 and (isinstance(part, str) or part == size) for size, part in zip(shape, wanted, strict=True)
    )


def _within(shape: Shape, limits: Range) -> bool:
    return all(low <= size <= high for low, size, high in zip(limits.min, shape, limits.max, strict=True))


def _distance(shapes: Shapes, profile: Profile) -> float:
    """How far shapes are from those that a profile is tuned for: the sum of the sizes' ratios, in logarithms."""
    pairs = [pair for name, shape in shapes.items() for pair in zip(shape, profile[name].opt, strict=True)]
    return sum(abs(math.log(size / tuned)) for size, tuned in pairs)


def _describe(dtypes: Mapping[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())


def _span(profile: Profile) -> str:
    return ", ".join(f"{name} {_times(limits.min)} to {_times(limits.max)}" for name, limits in profile.items())


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
