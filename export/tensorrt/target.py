"""What plans are built with and for: TensorRT for this machine's GPU, or TensorRT for RTX for generations of GPUs."""

from collections.abc import Sequence
from typing import NamedTuple

from vocabseg.runtime.bundle.plans import TITLES
from vocabseg.runtime.bundle.settings import nearest
from vocabseg.runtime.cuda.device import Device, open_device
from vocabseg.runtime.engines.tensorrt.package import Package, require_builder
from vocabseg.runtime.errors import ConfigurationError

# The generations that TensorRT for RTX 1.7 builds for, by compute capability. Data-centre GPUs from Hopper on (sm90,
# sm100, sm103) are for TensorRT alone.
GENERATIONS = {"sm75": (7, 5), "sm80": (8, 0), "sm86": (8, 6), "sm89": (8, 9), "sm120": (12, 0), "sm121": (12, 1)}
DEFAULT_GENERATIONS = ("sm80", "sm86", "sm89", "sm120")
# The oldest generation that has kernels for a precision, as the builder of 1.7.1 says; FP16 has them everywhere.
OLDEST = {"fp8": "sm89", "float32": "sm80", "int8": "sm80", "bfloat16": "sm80"}


class PlanTarget(NamedTuple):
    """TensorRT's package with a `device`, or that of TensorRT for RTX with `generations` (names such as "sm89")."""

    package: Package
    device: Device | None = None
    generations: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The folder of its plans in a bundle's `engines`."""
        return f"rtx-{'-'.join(self.generations)}" if self.device is None else self.device.key

    @property
    def capabilities(self) -> list[tuple[int, int]]:
        """The generations' compute capabilities."""
        return [GENERATIONS[name] for name in self.generations]

    @property
    def text(self) -> str:
        """As people read it."""
        info = self.package.info
        where = ", ".join(self.generations) if self.device is None else f"{self.device.name} ({self.device.key})"
        return f"{info.title} {info.version} {'for' if self.device is None else 'on'} {where}"


def open_target(engine: str, ordinal: int, generations: tuple[str, ...]) -> PlanTarget:
    """The target of an engine on this machine: its GPU number `ordinal`, or these generations.

    Raises EngineError where the engine's builder is not installed, or TensorRT finds no GPU.
    """
    package = require_builder(engine)
    if engine == "tensorrt-rtx":
        return PlanTarget(package, generations=generations)
    return PlanTarget(package, open_device(ordinal))


def choose_generations(engine: str, precision: str, names: Sequence[str]) -> tuple[str, ...]:
    """The generations to build for, oldest first: those of `names`, by default the usual ones that have the precision.

    Raises ConfigurationError for names that are unknown or too old for the precision, and where the engine is TensorRT,
    which builds for the GPU of its machine.
    """
    if engine == "tensorrt":
        if names:
            raise ConfigurationError("TensorRT builds for the GPU here: --gpus goes with --engine tensorrt-rtx")
        return ()
    oldest = OLDEST.get(precision, "sm75")
    if not names:
        return tuple(name for name in DEFAULT_GENERATIONS if GENERATIONS[name] >= GENERATIONS[oldest])
    for name in names:
        if name in ("sm90", "sm100", "sm103"):
            raise ConfigurationError(f"{TITLES[engine]} does not build for {name}: use --engine tensorrt on that GPU")
        if name not in GENERATIONS:
            raise ConfigurationError(f"{TITLES[engine]} does not know {name!r}: {nearest(name, GENERATIONS)}")
        if GENERATIONS[name] < GENERATIONS[oldest]:
            raise ConfigurationError(f"{name} has no kernels in {precision}: give {oldest} and newer with --gpus")
    return tuple(sorted(set(names), key=lambda name: GENERATIONS[name]))
