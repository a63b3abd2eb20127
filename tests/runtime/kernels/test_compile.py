"""The CUDA kernels compile for every architecture without spilling registers, and load what they should load widely."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda_emulation.library import DEVICE, kernel_names

CMAKE = DEVICE.parents[3] / "CMakeLists.txt"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
# Registers that a kernel may use, so that as many threads fit as its header reckons with.
REGISTERS = {
    "region_boxes_f32": 64, "region_boxes_f16": 64,
    "crop_regions_bits_f32": 56, "crop_regions_bits_f16": 56,
    "crop_regions_logits_f32": 144, "crop_regions_logits_f16": 144,
    "compose_f32": 80, "compose_f16": 80, "compose_many_f32": 168, "compose_many_f16": 168,
    "resize_normalize_f32": 64, "resize_normalize_f16": 64,
}  # fmt: skip
# On Turing, where a multiprocessor runs half as many threads.
TURING = {"crop_regions_bits_f32": 64, "crop_regions_bits_f16": 64, "compose_f32": 112, "compose_f16": 112}
# Kernels held to fewer registers than the compiler would take may keep so many bytes of a thread in memory.
HELD, KEPT = {"crop_regions_bits_f32", "crop_regions_bits_f16", "compose_f32", "compose_f16"}, 16


# GPUs from Turing on, and those of them on modules of their own, which run no code of other GPUs of their generation.
KNOWN = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
EMBEDDED = (87, 88, 110)


def architectures(name: str = "VOCABSEG_SM") -> list[str]:
    """Those that CMakeLists.txt names."""
    found = re.search(rf'{name} "([\d;]+)"', CMAKE.read_text())
    assert found is not None
    return found[1].split(";")


def finds_code(sm: int, machine_code: list[int], ptx: list[int]) -> bool:
    """Whether a GPU runs one of them: code of its own or a lower minor version, or PTX that its driver translates."""
    as_it_is = any(code == sm or (code // 10 == sm // 10 and code < sm and sm not in EMBEDDED) for code in machine_code)
    return as_it_is or any(code <= sm for code in ptx)


def test_the_published_list() -> None:
    assert architectures() == ["75", "80", "86", "89", "90", "100", "120"]


def test_every_gpu_from_turing_on_finds_code() -> None:
    machine_code = list(map(int, architectures()))
    ptx = [*map(int, architectures("VOCABSEG_PTX")), machine_code[-1]]
    assert set(ptx) <= set(machine_code)
    assert [sm for sm in (*KNOWN, 130) if not finds_code(sm, machine_code, ptx)] == []
    assert [sm for sm in KNOWN if not finds_code(sm, machine_code, [120])] == [87, 88, 110]  # with the newest alone


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed: nothing to compile the kernels with")
def test_this_compiler_knows_no_gpu_that_is_left_out() -> None:
    run = subprocess.run([str(NVCC), "--list-gpu-code"], capture_output=True, text=True, check=True)
    assert {int(sm) for sm in re.findall(r"sm_(\d+)", run.stdout) if int(sm) >= 75} <= set(KNOWN)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed: nothing to compile the kernels with")
def test_registers_and_spills(tmp_path: Path) -> None:
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in architectures()]
    run = subprocess.run(
        [str(NVCC), "-fatbin", "-O3", "-std=c++17", "--fmad=false", "--threads=2", *codes, "-Werror", "all-warnings",
         "-Xptxas", "-v", "-o", str(tmp_path / "kernels.fatbin"), str(DEVICE)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[:2000]
    usage = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        run.stderr,
        re.DOTALL,
    )
    assert {(name, sm) for name, sm, *_ in usage} == {(name, sm) for name in kernel_names() for sm in architectures()}
    for name, sm, stack, stores, loads, registers in usage:
        kept = max(int(stack), int(stores))
        assert kept <= (KEPT if name in HELD else 0), (
            f"{name} on sm_{sm} keeps {kept} bytes in memory, and reads {loads}"
        )
        limit = (TURING if sm == "75" and name in TURING else REGISTERS).get(name, 128)
        assert int(registers) <= limit, f"{name} on sm_{sm} takes {registers} registers"
    assert set(REGISTERS) <= set(kernel_names())
