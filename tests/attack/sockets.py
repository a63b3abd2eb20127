"""Which processes belong to one, and at which addresses they listen; Linux only."""

import contextlib
import ipaddress
import os
import sys
from pathlib import Path
from typing import NamedTuple

from vocabseg.benchmarks.scale.processes import parents_of_all

LISTENING = "0A"


class Socket(NamedTuple):
    """A listening TCP or a bound UDP socket."""

    process: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        mapped = getattr(self.address, "ipv4_mapped", None)
        return (mapped or self.address).is_loopback


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents = parents_of_all()
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def sockets(pids: list[int]) -> list[Socket]:
    """The sockets of the processes at which anyone could call."""
    owners = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    owners[os.readlink(handle)] = name
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            owner = owners.get(f"socket:[{rest[5]}]")
            if owner is not None and (state == LISTENING or table.startswith("udp")):
                address, port = local.split(":")
                found.append(Socket(owner, _address(bytes.fromhex(address)), int(port, 16)))
    return found


def _address(raw: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel writes an address as words of 32 bits in the machine's own order."""
    words = [raw[start : start + 4] for start in range(0, len(raw), 4)]
    return ipaddress.ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
