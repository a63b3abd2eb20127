"""tools/zero_architectures.py: what it keeps of containers made by hand and of a library that nvcc made."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tools.zero_architectures import CUBIN, ONE_ARCHITECTURE, ONE_FAMILY, PTX, containers, main, needed, sections

LTO_IR = 8
# For the test with nvcc: code for three GPUs, one of them twice, and PTX that newer GPUs compile.
TARGETS = ("compute_80,code=sm_80", "compute_90,code=sm_90", "compute_90a,code=sm_90a", "compute_100,code=sm_100")
TARGETS = (*TARGETS, "compute_80,code=compute_80")
KERNEL = """
__global__ void add(float* a, const float* b) { a[threadIdx.x] += b[threadIdx.x]; }
extern "C" void launch(float* a, const float* b) { add<<<1, 256>>>(a, b); }
"""


def entry(kind: int, architecture: int, flags: int = 0x11, size: int = 24) -> bytes:
    """An entry whose payload is the architecture's number, again and again; headers are of 64 or 96 bytes."""
    header = 96 if architecture >= 100 else 64
    start = struct.pack("<HHIQIIHHIIIQQQ", kind, 0x101, header, size, 0, 0, 8, 1, architecture, 0, 0, flags, 0, 0)
    return start.ljust(header, b"\xaa") + bytes([architecture]) * size


def container(*of: bytes) -> bytes:
    """A container of these entries."""
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(b"".join(of))) + b"".join(of)


def elf(content: bytes, section: str = ".nv_fatbin") -> bytes:
    """A 64-bit ELF file with one section of this content, one of text, and one that has no content in the file."""
    names = f"\0{section}\0.text\0.names\0".encode()
    text = b"\x90" * 32
    parts, offset, headers = [content, text, names], 64, [bytes(64)]
    for part, name, kind in zip(parts, (section, ".text", ".names"), (1, 1, 3), strict=True):
        header = struct.pack("<IIQQQQ", names.index(name.encode()), kind, 0, 0, offset, len(part))
        headers.append(header.ljust(64, b"\0"))
        offset += len(part)
    headers.append(struct.pack("<IIQQQQ", 1, 8, 0, 0, 1 << 40, 1 << 20).ljust(64, b"\0"))
    start = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack("<Q", offset)
    start = start.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(headers), 3)
    return b"".join([start, *parts, *headers])


def kept(library: bytes) -> list[list[str]]:
    """The names of the entries of each container whose payload is not zeros."""
    return [
        [one.name for one in found if any(library[one.offset : one.offset + one.size])]
        for begin, end in sections(library)
        for found in containers(library, begin, end)
    ]


def only_payloads_differ(before: bytes, after: bytes) -> bool:
    """Every byte outside the payloads is as before, and so is every payload that is not zeros."""
    rest = bytearray(before)
    for begin, end in sections(before):
        for found in containers(before, begin, end):
            for one in found:
                span = slice(one.offset, one.offset + one.size)
                if not any(after[span]):
                    rest[span] = bytes(one.size)
    return bytes(rest) == after


def zeroed(folder: Path, library: bytes, keep: int = 90) -> bytes:
    """The library after the script."""
    path = folder / "library.so"
    path.write_bytes(library)
    assert main([str(path), "--keep", str(keep)]) == 0
    assert only_payloads_differ(library, path.read_bytes())
    return path.read_bytes()


@pytest.mark.parametrize("section", [".nv_fatbin", "__nv_relfatbin"])
def test_only_the_chosen_architecture_is_left(tmp_path: Path, section: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = container(entry(CUBIN, 80), entry(CUBIN, 90), entry(CUBIN, 90, ONE_ARCHITECTURE), entry(PTX, 100))
    second = container(entry(PTX, 90, size=8), entry(CUBIN, 120, size=4096))
    after = zeroed(tmp_path, elf(first + bytes(16) + second, section))
    assert kept(after) == [["cubin 90", "cubin 90a"], ["PTX 90"]]
    assert (
        "2 containers: kept 3 entries of 0.0 MB, zeroed 3 of 0.0 MB; 0 containers have nothing"
        in capsys.readouterr().out
    )


def test_other_kinds_of_entries_stay(tmp_path: Path) -> None:
    after = zeroed(tmp_path, elf(container(entry(LTO_IR, 75), entry(CUBIN, 90), entry(CUBIN, 80))))
    assert kept(after) == [["kind 8 75", "cubin 90"]]


@pytest.mark.parametrize(
    ("keep", "there", "expected"),
    [
        (90, [(CUBIN, 80), (PTX, 75), (PTX, 80)], ["PTX 80"]),  # a cubin runs on its own major version alone
        (89, [(CUBIN, 80), (CUBIN, 86), (PTX, 86), (CUBIN, 90)], ["cubin 86"]),
        (86, [(CUBIN, 89), (PTX, 89), (CUBIN, 75)], []),  # nothing runs on older GPUs than it was made for
        (100, [(PTX, 80), (PTX, 90, ONE_ARCHITECTURE), (CUBIN, 90)], ["PTX 80"]),  # 90a has no successor
        (103, [(CUBIN, 100, ONE_FAMILY), (CUBIN, 101, ONE_ARCHITECTURE)], ["cubin 100f"]),
        (120, [(PTX, 90), (PTX, 100, ONE_FAMILY)], ["PTX 90"]),  # another family
        (90, [(PTX, 52), (CUBIN, 120)], ["PTX 52"]),
    ],
)
def test_without_the_architecture_what_the_driver_falls_back_to_is_left(
    tmp_path: Path, keep: int, there: list[tuple[int, ...]], expected: list[str]
) -> None:
    assert kept(zeroed(tmp_path, elf(container(*(entry(*one) for one in there))), keep)) == [expected]


def test_copies_go_to_the_output_folder(tmp_path: Path) -> None:
    library = elf(container(entry(CUBIN, 80), entry(CUBIN, 90)))
    (tmp_path / "a.so").write_bytes(library)
    assert main([str(tmp_path / "a.so"), "--keep", "90", "--output", str(tmp_path / "new")]) == 0
    assert (tmp_path / "a.so").read_bytes() == library
    assert kept((tmp_path / "new" / "a.so").read_bytes()) == [["cubin 90"]]


def test_a_list_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = elf(container(entry(CUBIN, 80, size=0), entry(PTX, 90, ONE_ARCHITECTURE)))
    (tmp_path / "a.so").write_bytes(library)
    assert main([str(tmp_path / "a.so"), "--list"]) == 0
    assert "PTX 90a           1 entries       0.0 MB, zeroed 0" in capsys.readouterr().out
    assert (tmp_path / "a.so").read_bytes() == library


WHOLE = elf(container(entry(CUBIN, 80)))


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (b"#!/bin/sh\n", "not a 64-bit little-endian ELF file"),
        (WHOLE[:-200], "its section table is truncated"),
        (elf(b"", ".data"), "no section .nv_fatbin or __nv_relfatbin with a container"),
        (elf(b"abcdefgh" * 4), "unknown container at 0x40: magic 0x64636261, version 26213"),
        (elf(container(entry(CUBIN, 80))[:-8]), "the container at 0x40 ends beyond its section"),
        (elf(container(entry(CUBIN, 80)[:20])), "the entry at 0x50 is truncated"),
        (elf(container(entry(CUBIN, 80)[:-8])), "the entry at 0x50 ends beyond its container"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], library: bytes, reason: str
) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(library)
    assert main([str(path), "--keep", "90"]) == 1
    assert capsys.readouterr().err == f"zero_architectures: {path}: {reason}\n"
    assert path.read_bytes() == library


def test_a_missing_file_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.so"), "--keep", "90"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_library_made_by_nvcc(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not nvcc:
        pytest.skip("nvcc is not installed")
    (tmp_path / "add.cu").write_text(KERNEL)
    targets = [part for target in TARGETS for part in ("-gencode", f"arch={target}")]
    command = [nvcc, "-shared", "-Xcompiler", "-fPIC", *targets, "-o", "add.so", "add.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nvcc cannot build the library: {(done.stderr or done.stdout).strip()[:200]}")
    library = (tmp_path / "add.so").read_bytes()
    built = [set(names) for names in kept(library)]
    assert {"cubin 80", "cubin 90", "cubin 90a", "cubin 100", "PTX 80"} in built
    after = zeroed(tmp_path, library)
    assert all(names and set(names) <= {"cubin 90", "cubin 90a"} for names in kept(after))
    assert [name for name in kept(after) if "cubin 90a" in name]


def test_what_is_needed_does_not_depend_on_the_order() -> None:
    library = elf(container(entry(PTX, 80), entry(CUBIN, 86), entry(CUBIN, 80), entry(PTX, 86)))
    ((begin, end),) = sections(library)
    (found,) = containers(library, begin, end)
    assert {one.name for one in needed(found, 89)} == {one.name for one in needed(found[::-1], 89)} == {"cubin 86"}
