"""An ONNX graph -> a plan in the graph's own types (strongly typed), by TensorRT 10.13 to 11 or TensorRT for RTX."""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vocabseg.export.tensorrt.explain import Explanation, LogReader
from vocabseg.export.tensorrt.monitor import Monitor, progress_monitor
from vocabseg.export.tensorrt.operators import check_operators
from vocabseg.export.tensorrt.target import PlanTarget
from vocabseg.runtime.bundle.plans import Compatibility, Profile
from vocabseg.runtime.engines.tensorrt.messages import Messages, check_started, make_logger
from vocabseg.runtime.engines.tensorrt.package import Bindings, Package
from vocabseg.runtime.errors import ConfigurationError, EngineError, OutputError
from vocabseg.runtime.files import atomic_write
from vocabseg.runtime.progress import Progress, silent

if TYPE_CHECKING:
    import tensorrt

LEVELS = range(6)
POLL_SECONDS = 0.2  # how often the waiting thread can be interrupted


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How plans are built.

    optimization_level: 0 (fast build) to 5 (searches longest); 3 is TensorRT's own default.
    workspace_bytes: memory that a layer may use while it runs; with None TensorRT may use all that the GPU has.
    version_compatible: plans that the lean runtime of the same version opens, and newer versions with its library. They
        contain no lean runtime of their own, since that would be code from a file.
    hardware_compatibility: which other GPUs may run the plans.

    The last two are TensorRT's alone; TensorRT for RTX builds for its own version and its target's generations.
    """

    optimization_level: int = 3
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatibility: Compatibility = "none"

    def check(self, engine: str = "tensorrt") -> None:
        """Raise ConfigurationError for values that the engine, TensorRT or TensorRT for RTX, does not take."""
        if engine == "tensorrt-rtx" and (self.version_compatible or self.hardware_compatibility != "none"):
            option = "--version-compatible" if self.version_compatible else "--hardware-compatible"
            raise ConfigurationError(f"{option} is of --engine tensorrt; TensorRT for RTX takes --gpus")
        if self.optimization_level not in LEVELS:
            raise ConfigurationError(f"the optimisation level is {self.optimization_level}: give 0 to {LEVELS[-1]}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise ConfigurationError(f"the workspace has {self.workspace_bytes} bytes: give at least 1 MB")


class BuiltPlan(msgspec.Struct, frozen=True):
    """The result of a build: the plan's bytes, the builder flags that were set, and what is in the plan."""

    data: bytes
    flags: list[str]
    explanation: Explanation


def build_plan(
    graph: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    target: PlanTarget,
    timing_cache: Path | None = None,
    progress: Progress = silent,
) -> BuiltPlan:
    """Build the plan of the ONNX graph at `graph` for `target`; TensorRT takes minutes, TensorRT for RTX seconds.

    Measurements of single layers are read from the file `timing_cache` and kept there; TensorRT for RTX makes none.
    Ctrl-C stops the build at its next step. Raises EngineError if the graph has operators that the engine does not
    take, or if the build fails: with the node or the builder's last error.
    """
    info = target.package.info
    options.check(info.engine)
    # The list of operators tells TensorRT's versions apart; TensorRT for RTX 1.7 has the parser of 11.4.
    problems = check_operators(graph, info.version if info.engine == "tensorrt" else None)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EngineError(f"{info.title} {info.version} cannot take {problems[0]}{more}")
    monitor = Monitor(f"building {graph.stem}", progress)
    results: list[BuiltPlan] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with nullcontext() if target.device is None else target.device.activate():
                results.append(_build(graph, profiles, options, target, timing_cache, monitor))
        except BaseException as error:
            errors.append(error)

    # The builder blocks its thread until it is done. Here it has its own, so that Ctrl-C reaches this one.
    thread = threading.Thread(target=work, name=f"build {graph.stem}", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
    except KeyboardInterrupt:
        monitor.cancel()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]


def _build(
    graph: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    target: PlanTarget,
    timing_cache: Path | None,
    monitor: Monitor,
) -> BuiltPlan:
    package = target.package
    info, trt = package.info, package.trt
    logger, messages = make_logger(trt)
    messages.clear()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what its bindings raise where CUDA does not start
        raise EngineError(f"{info.title}'s builder does not start: {messages.reason(str(error))}") from None
    check_started(builder, f"{info.title}'s builder", messages)
    # Needed up to TensorRT 10; in TensorRT 11 every network is strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise EngineError(f"{info.title} cannot parse {graph.name}: {_parser_errors(parser, messages)}")
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    flags = _configure(trt, config, options)
    if package.rtx is not None:
        flags += _configure_generations(package, config, target.generations)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, limits in profile.items():
            shapes.set_shape(name, tuple(limits.min), tuple(limits.opt), tuple(limits.max))
        if config.add_optimization_profile(shapes) < 0:
            raise EngineError(f"{info.title} does not take a profile of {graph.name}: {messages.reason()}")
    if package.rtx is None:
        _read_timings(config, timing_cache)
    progress = progress_monitor(trt, monitor)  # lives until the build is over
    config.progress_monitor = progress
    messages.listener = reader = LogReader()
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        messages.listener = None
    if plan is None:
        stopped = "it was stopped" if monitor.cancelled else messages.reason()
        raise EngineError(f"{info.title} cannot build {graph.name}: {stopped}")
    if package.rtx is None:
        _write_timings(config, timing_cache)
    return BuiltPlan(bytes(memoryview(plan)), sorted(flags), reader.explanation())


def _let_attention_decompose(trt: Bindings, network: "tensorrt.INetworkDefinition") -> None:
    """Allow Attention for which there is no kernel of its own to be computed in parts; else such a build fails."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # there since TensorRT 10.14
    for index in range(0 if kind is None else network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            attention: Any = layer
            attention.__class__ = trt.__dict__["IAttentionInputLayer"]  # the bindings hand out the base class
            attention.attention.decomposable = True


def _configure(trt: Bindings, config: "tensorrt.IBuilderConfig", options: BuildOptions) -> list[str]:
    """Set everything but profiles and generations; returns the names of the flags that were set, for the record."""
    config.builder_optimization_level = options.optimization_level
    # Serving runs many contexts on streams of its own; helper streams of TensorRT would only compete with them.
    config.max_aux_streams = 0
    # The builder's log then says which kernels it chose.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default; it would round what is kept in float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    # A context then needs the memory of its own shapes, not that of the profile's largest.
    config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    flags = ["RUNTIME_ACTIVATION_RESIZE_10_10", "STRONGLY_TYPED"]
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        flags += ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]
    if options.hardware_compatibility == "same-compute-capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    elif options.hardware_compatibility == "ampere-plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return flags


def _configure_generations(package: Package, config: Any, names: Sequence[str]) -> list[str]:
    """Set what TensorRT for RTX alone has; returns the names of the flags that were set."""
    rtx = package.rtx
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(rtx.ComputeCapability.__members__[name.upper()], index):
            raise EngineError(f"{package.info.title} {package.info.version} does not build for {name}")
    # Scratch memory is ours and work is captured as CUDA graphs: nothing may be allocated while it runs.
    config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return ["REQUIRE_USER_ALLOCATION"]


def _parser_errors(parser: "tensorrt.OnnxParser", messages: Messages) -> str:
    """The first error with its node and operator, and how many there are."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return messages.reason()
    first = errors[0]
    where = f"node {first.node_name()!r} ({first.node_operator()}): " if first.node_operator() else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}{' '.join(first.desc().split())}{more}"


def _read_timings(config: "tensorrt.IBuilderConfig", path: Path | None) -> None:
    """Start from what earlier builds measured; the cache of another GPU or TensorRT is replaced by an empty one."""
    data = b"" if path is None or not path.is_file() else path.read_bytes()
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timings(config: "tensorrt.IBuilderConfig", path: Path | None) -> None:
    """Keep what was measured; if the folder cannot be written, the next build only takes longer."""
    cache = config.get_timing_cache()
    if path is None or cache is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(memoryview(cache.serialize()))
    except (OSError, OutputError):
        return
