"""Make a CUDA library compress to what one GPU needs, without changing its layout.

    python tools/zero_architectures.py LIBRARY [LIBRARY ...] --keep 90 [--output FOLDER]
    python tools/zero_architectures.py LIBRARY [LIBRARY ...] --list

A shared library built by nvcc for many GPUs contains every kernel once per GPU, in containers ("fatbins") inside the
ELF sections .nv_fatbin and __nv_relfatbin. The driver picks one entry of a container by its header and reads no other.
So this script leaves all headers unchanged and zeroes the payload of every cubin and PTX that a GPU of the kept compute
capability does not need: no offset moves, there is no checksum, the file keeps its size, and any compressor reduces the
zeros to nothing.

Entries for the capability itself are kept (90 stands for sm_90 and sm_90a). A container without one keeps what the
driver would fall back to: the newest cubin of a lower minor version of the same major version, or else the newest PTX
of a lower version. A container with neither (kernels only for other GPUs) is zeroed completely, and counted.
Libraries are changed in place unless --output names a folder for the changed copies. Standard library only.
"""

import argparse
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECTIONS = (".nv_fatbin", "__nv_relfatbin")

# A container: magic, version, size of this header, size of the entries that follow.
CONTAINER = struct.Struct("<IHHQ")
MAGIC = 0xBA55ED50
# The start of an entry's header: kind, version, size of the header, size of the payload (padded), 12 bytes that are not
# needed here, architecture, 8 more such bytes, flags.
ENTRY = struct.Struct("<HHIQ12xI8xQ")
PTX, CUBIN = 1, 2
KINDS = {PTX: "PTX", CUBIN: "cubin"}
# Flags of code for a single architecture (sm_90a) and for a family of minor versions (sm_100f).
ONE_ARCHITECTURE, ONE_FAMILY = 0x100000, 0x200000


class FatbinError(Exception):
    """The file is not a library that this script can read."""


@dataclass(frozen=True)
class FatbinEntry:
    """One cubin or PTX of a container; `offset` is where its payload begins in the file."""

    kind: int
    architecture: int
    flags: int
    offset: int
    size: int

    @property
    def name(self) -> str:
        """For display: "cubin 90a"."""
        suffix = "a" if self.flags & ONE_ARCHITECTURE else "f" if self.flags & ONE_FAMILY else ""
        return f"{KINDS.get(self.kind, f'kind {self.kind}')} {self.architecture}{suffix}"


def sections(library: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of the sections that hold containers, in a 64-bit little-endian ELF file."""
    if library[:6] != b"\x7fELF\x02\x01":
        raise FatbinError("not a 64-bit little-endian ELF file")
    try:
        (table,) = struct.unpack_from("<Q", library, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", library, 0x3A)
        # Of each header: offset of the name, type, and offset and size of the content.
        headers = [struct.unpack_from("<II16xQQ", library, table + size * number) for number in range(count)]
        names = headers[names_index][2]
    except (struct.error, IndexError):
        raise FatbinError("its section table is truncated") from None
    for name, kind, begin, length in headers:
        text = library[names + name : library.find(b"\0", names + name)].decode("latin-1")
        if text in SECTIONS and kind != 8:  # 8: a section without content in the file, as in debug symbols
            if begin + length > len(library):
                raise FatbinError(f"its section {text} is truncated")
            yield begin, begin + length


def containers(library: bytes, begin: int, end: int) -> Iterator[list[FatbinEntry]]:
    """The entries of each container between two offsets; there may be zeros between containers."""
    while begin + CONTAINER.size <= end:
        magic, version, header, length = CONTAINER.unpack_from(library, begin)
        if not magic:
            begin += 8
            continue
        if magic != MAGIC or version != 1:
            raise FatbinError(f"unknown container at {begin:#x}: magic {magic:#x}, version {version}")
        stop = begin + header + length
        if header < CONTAINER.size or stop > end:
            raise FatbinError(f"the container at {begin:#x} ends beyond its section")
        yield list(entries(library, begin + header, stop))
        begin = stop


def entries(library: bytes, begin: int, end: int) -> Iterator[FatbinEntry]:
    """The entries of one container."""
    while begin < end:
        if begin + ENTRY.size > end:
            raise FatbinError(f"the entry at {begin:#x} is truncated")
        kind, _, header, size, architecture, flags = ENTRY.unpack_from(library, begin)
        if header < ENTRY.size or begin + header + size > end:
            raise FatbinError(f"the entry at {begin:#x} ends beyond its container")
        yield FatbinEntry(kind, architecture, flags, begin + header, size)
        begin += header + size


def needed(container: Iterable[FatbinEntry], keep: int) -> set[FatbinEntry]:
    """The entries that a GPU of capability `keep` may run; anything but cubin and PTX is always kept."""
    found = list(container)
    others = {entry for entry in found if entry.kind not in KINDS}
    same = {entry for entry in found if entry.architecture == keep} - others
    if same:
        return same | others
    lower = [
        entry
        for entry in found
        if entry.architecture < keep and not entry.flags & ONE_ARCHITECTURE and entry not in others
    ]
    family = [entry for entry in lower if entry.architecture // 10 == keep // 10]
    cubins = [entry for entry in family if entry.kind == CUBIN]
    ptx = [entry for entry in lower if entry.kind == PTX and (entry in family or not entry.flags & ONE_FAMILY)]
    fallback = cubins or ptx
    newest = max((entry.architecture for entry in fallback), default=0)
    return {entry for entry in fallback if entry.architecture == newest} | others


def zero(library: bytearray, keep: int) -> str:
    """Zero in `library` what `keep` does not need; returns a one-line report."""
    plan = []
    for begin, end in sections(library):
        plan += [(container, needed(container, keep)) for container in containers(library, begin, end)]
    if not plan:
        raise FatbinError(f"no section {' or '.join(SECTIONS)} with a container")
    kept, zeroed, without = Counter[str](), Counter[str](), 0
    for container, keeps in plan:
        without += not keeps
        for entry in container:
            total = kept if entry in keeps else zeroed
            total["entries"] += 1
            total["bytes"] += entry.size
            if total is zeroed:
                library[entry.offset : entry.offset + entry.size] = bytes(entry.size)
    return (
        f"{len(plan)} containers: kept {kept['entries']} entries of {kept['bytes'] / 1e6:.1f} MB, "
        f"zeroed {zeroed['entries']} of {zeroed['bytes'] / 1e6:.1f} MB; {without} containers have nothing for {keep}"
    )


def listing(library: bytes) -> str:
    """One line per architecture: number of entries, bytes, and how many entries are zeroed."""
    total: dict[str, Counter[str]] = {}
    for begin, end in sections(library):
        for container in containers(library, begin, end):
            for entry in container:
                row = total.setdefault(entry.name, Counter())
                row["entries"] += 1
                row["bytes"] += entry.size
                row["zeroed"] += not any(library[entry.offset : entry.offset + entry.size])
    if not total:
        raise FatbinError(f"no section {' or '.join(SECTIONS)} with a container")
    rows = [
        f"  {name:12} {row['entries']:6} entries {row['bytes'] / 1e6:9.1f} MB, zeroed {row['zeroed']}"
        for name, row in sorted(total.items())
    ]
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    """0 if all libraries were read and, with --keep, written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", type=Path, nargs="+", metavar="LIBRARY")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--keep", type=int, metavar="CAPABILITY", help="the GPU's compute capability without the dot")
    task.add_argument("--list", action="store_true", help="list the architectures and change nothing")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where changed copies go; default: in place")
    options = parser.parse_args(arguments)
    for path in options.libraries:
        try:
            library = bytearray(path.read_bytes())
            if options.list:
                print(f"{path.name}:\n{listing(library)}")
                continue
            report = zero(library, options.keep)
            target = options.output / path.name if options.output else path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(library)
        except (OSError, FatbinError) as error:
            print(f"zero_architectures: {path}: {error}", file=sys.stderr)
            return 1
        print(f"{path.name}: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
