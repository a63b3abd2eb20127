"""Builds the emulated kernels once for each state of their sources, and launches them.

The C interface, for ctypes (kernels.cpp and watch.cpp): emulation_launch, emulation_parameters, emulation_kernel,
emulation_seed, emulation_completed; emulation_allocated, emulation_freed and emulation_written for the watch over
memory.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "runtime" / "kernels" / "device"
DEVICE = KERNELS / "kernels.cu"
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wno-unknown-pragmas")
# Accesses to memory call functions of watch.cpp; the sanitizers' own libraries take no part.
WATCHED = (
    "-fsanitize=thread",
    "-fsanitize=alignment",
    "--param=tsan-instrument-func-entry-exit=0",
    "--param=tsan-distinguish-volatile=0",
)
ENTRY = re.compile(
    r"__global__\s+void\s+(?:__launch_bounds__\(.*\)\s+)?(\w+)\(|^VOCABSEG_\w+_KERNEL\((\w+)", re.MULTILINE
)


class EmulationError(Exception):
    """A launch that would fail, hang, race or touch foreign memory on a GPU; the message says where."""


def compiler() -> str | None:
    """The C++ compiler that builds the emulation, or None."""
    return shutil.which(os.environ.get("CXX") or "g++")


def kernel_names(source: Path = DEVICE) -> list[str]:
    """The kernels that a source and the headers beside it define."""
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.cuh")))]
    found = [plain or from_macro for text in texts for plain, from_macro in ENTRY.findall(text)]
    return [name for name in found if name not in ("name", "__launch_bounds__")]  # those stand in the macros themselves


class Emulation:
    """The kernels, ready to be launched on host memory.

    watched: whether accesses to memory are watched. That is many times slower; what kernels touch must then be told by
    `allocated`. turing: as for GPUs whose tensor cores multiply 8 columns at a time. source: the file that is compiled.
    """

    def __init__(self, watched: bool = False, turing: bool = False, source: Path = DEVICE):
        self.watched = watched
        self.library = ctypes.CDLL(str(_build(watched, turing, source)))
        self.library.emulation_launch.restype = ctypes.c_char_p
        self.library.emulation_launch_packed.restype = ctypes.c_char_p
        self.library.emulation_kernel.restype = ctypes.c_char_p
        self.library.emulation_completed.restype = ctypes.c_uint64
        self._sizes: dict[str, list[int]] = {}

    def seed(self, seed: int) -> None:
        """The order in which blocks, and threads of a block, run: as numbered for 0, else drawn from the seed."""
        self.library.emulation_seed(ctypes.c_uint64(seed))

    def completed(self) -> dict[str, int]:
        """How many operations of whole warps have run so far: ballots (with votes), shuffles and matrix products."""
        places = {"ballots": 2, "shuffles": 3, "products": 4}  # of cuda_emulation.h's Operation
        return {name: self.library.emulation_completed(place) for name, place in places.items()}

    def parameter_sizes(self, name: str) -> list[int]:
        """Sizes of a kernel's parameters in bytes; raises EmulationError for an unknown kernel."""
        if name not in self._sizes:
            sizes, alignments = (ctypes.c_uint * 64)(), (ctypes.c_uint * 64)()
            count = self.library.emulation_parameters(name.encode(), sizes, alignments)
            if count < 0:
                raise EmulationError(f"there is no kernel {name}")
            self._sizes[name] = list(sizes[:count])
        return self._sizes[name]

    def launch(
        self, name: str, grid: Sequence[int], block: Sequence[int], parameters: Sequence[bytes], shared_bytes: int = 0
    ) -> None:
        """Run a kernel to its end; each parameter is given by its bytes, a pointer as 8. Raises EmulationError."""
        wanted, given = self.parameter_sizes(name), [len(parameter) for parameter in parameters]
        if wanted != given:
            raise EmulationError(f"{name} takes parameters of {wanted} bytes, not of {given}")
        buffers = [ctypes.create_string_buffer(parameter, len(parameter)) for parameter in parameters]
        pointers = (ctypes.c_void_p * max(len(buffers), 1))(*(ctypes.addressof(buffer) for buffer in buffers))
        three = ctypes.c_uint * 3
        message = self.library.emulation_launch(
            name.encode(), three(*_three(grid)), three(*_three(block)), ctypes.c_uint(shared_bytes), pointers
        )
        if message is not None:
            raise EmulationError(f"{name}: {message.decode()}")

    def launch_packed(
        self, name: str, grid: Sequence[int], block: Sequence[int], data: bytes, shared_bytes: int = 0
    ) -> None:
        """The same with the parameters in one piece, each aligned to its type. Raises EmulationError."""
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        three = ctypes.c_uint * 3
        message = self.library.emulation_launch_packed(
            name.encode(),
            three(*_three(grid)),
            three(*_three(block)),
            ctypes.c_uint(shared_bytes),
            buffer,
            ctypes.c_size_t(len(data)),
        )
        if message is not None:
            raise EmulationError(f"{name}: {message.decode()}")

    def allocated(self, address: int, size: int, known: bool) -> None:
        """Kernels may touch `size` bytes from now on; known: whether they hold something already."""
        self.library.emulation_allocated(ctypes.c_void_p(address), ctypes.c_size_t(size), int(known))

    def freed(self, address: int) -> None:
        """What `allocated` said no longer holds."""
        self.library.emulation_freed(ctypes.c_void_p(address))

    def written(self, address: int, size: int, known: bool = True) -> None:
        """The host has written these bytes of an allocation, or (not known) given them up."""
        self.library.emulation_written(ctypes.c_void_p(address), ctypes.c_size_t(size), int(known))


@cache
def emulation(watched: bool = False, turing: bool = False) -> Emulation:
    """The one of this process."""
    return Emulation(watched, turing)


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (*sizes, 1, 1)[:3]


def _build(watched: bool, turing: bool, source: Path) -> Path:
    """The shared library, built unless that was done for these very sources and flags."""
    sources = [source, *sorted(KERNELS.glob("*.cuh")), KERNELS.parent / "pixel_math.h"]
    sources += sorted(path for path in HERE.iterdir() if path.suffix in (".h", ".cpp"))
    flags = (*FLAGS, *(WATCHED if watched else ()), *(["-DVOCABSEG_EMULATE_TURING"] if turing else ()))
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in sources:
        digest.update(path.name.encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"vocabseg-emulation-{os.getuid() if hasattr(os, 'getuid') else 0}"
    target = folder / f"{digest.hexdigest()[:24]}.so"
    if target.is_file():
        return target
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        (Path(scratch) / "kernel_list.inc").write_text("".join(f"KERNEL({name})\n" for name in kernel_names(source)))
        include = [f"-I{KERNELS}", f"-I{HERE}", f"-I{scratch}", f'-DVOCABSEG_DEVICE_SOURCE="{source}"']
        _compile([*flags, *include, "-c", f"{HERE}/kernels.cpp", "-o", f"{scratch}/kernels.o"])
        _compile(
            ["-shared", f"{scratch}/kernels.o", *map(str, _machinery(folder)), "-o", f"{scratch}/kernels.so", "-ldl"]
        )
        os.replace(f"{scratch}/kernels.so", target)
    return target


def _machinery(folder: Path) -> list[Path]:
    """Objects of what is the same for all kernels, compiled unless that was done for these very sources."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(path for path in HERE.iterdir() if path.suffix in (".h", ".cpp")):
        digest.update(path.read_bytes())
    objects = [folder / f"{unit}-{digest.hexdigest()[:24]}.o" for unit in ("scheduler", "watch")]
    for target in objects:
        if not target.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                source = HERE / f"{target.name.partition('-')[0]}.cpp"
                _compile([*FLAGS, f"-I{HERE}", "-c", str(source), "-o", f"{scratch}/unit.o"])
                os.replace(f"{scratch}/unit.o", target)
    return objects


def _compile(arguments: Sequence[str]) -> None:
    run = subprocess.run([compiler() or "g++", *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise EmulationError(f"the emulated kernels do not compile:\n{run.stderr[:4000]}")
