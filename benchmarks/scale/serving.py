"""A server under load, and the same segmenter alone in a process; memory is that of the server and its models."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.errors import VocabsegError
from vocabseg.serving.client.sync_client import Client
from vocabseg.serving.model_repository.model_configuration import Serving
from vocabseg.serving.model_repository.writer import write_repository
from vocabseg.serving.server import process_table
from vocabseg.serving.server.triton_server import STUB, Ports, TritonServer, start

# Contract: a server reaches this share of `segment_many`, and batching gains something.
LEAST_SHARE = 0.9
# Memory of a warm server may grow by this share: what allocators keep varies by some megabytes.
LARGEST_GROWTH = 0.02
VOCABULARIES = (["red circle", "blue square", "grass"], ["green star", "sky", "water", "sand"])
# Share of the time before memory is measured.
WARM_UP = 0.25
LOCAL = """
import itertools, json, sys, time
import vocabseg
bundle, seconds, vocabulary, *paths = json.loads(sys.argv[1])
segmenter = vocabseg.load(bundle)
contents = [open(path, "rb").read() for path in paths]
list(segmenter.segment_many(contents[:4], vocabulary))
begin, used, count = time.perf_counter(), time.process_time(), 0
for result in segmenter.segment_many(itertools.cycle(contents), vocabulary):
    count += 1
    if time.perf_counter() - begin >= seconds:
        break
print(count, time.perf_counter() - begin, time.process_time() - used)
"""


def alone(bundle: Path | None, images: list[Path], seconds: float) -> dict[str, float]:
    """Images per second of `segment_many` in a process of its own."""
    given = json.dumps([None if bundle is None else str(bundle), seconds, VOCABULARIES[0], *map(str, images)])
    done = subprocess.run([sys.executable, "-c", LOCAL, given], capture_output=True, text=True, check=True)
    count, took, used = map(float, done.stdout.split())
    return {"images per second": count / took, "CPU seconds per image": used / count}


def served(
    bundle: Bundle,
    serving: Serving,
    environment: Path,
    folder: Path,
    protocol: str,
    clients: int,
    images: list[Path],
    seconds: float,
) -> dict[str, Any]:
    """The rates, latencies and memory of a server in `folder` under `clients` clients for `seconds`.

    `environment` is where the server is installed.
    """
    (folder / "server").mkdir(parents=True)
    write_repository(bundle, folder / "models", serving, beside=True)
    server = start(environment, folder / "models", serving.name, folder / "server", ports=Ports(0, 0, 0))
    try:
        server.wait_until_ready(300)
        return _load(server, server.urls()[protocol], clients, images, seconds)
    finally:
        server.stop()


def _load(server: TritonServer, url: str, clients: int, images: list[Path], seconds: float) -> dict[str, Any]:
    contents = [path.read_bytes() for path in images]
    latencies: list[float] = []
    errors: list[str] = []
    begin, used, own = time.perf_counter(), _used(server), time.process_time()
    end = begin + seconds

    def work(number: int, client: Client) -> None:
        turn = number
        while time.perf_counter() < end:
            asked = time.perf_counter()
            try:
                client(contents[turn % len(contents)], VOCABULARIES[turn % 2])
                latencies.append(time.perf_counter() - asked)
            except VocabsegError as error:
                errors.append(str(error))
            turn += 1

    with Client(url, retries=0) as client:
        workers = [threading.Thread(target=work, args=(number, client)) for number in range(clients)]
        for worker in workers:
            worker.start()
        memory = []
        while time.perf_counter() < end:
            time.sleep(min(1.0, seconds / 20))
            memory.append((time.perf_counter() - begin, _memory(server)))
        for worker in workers:
            worker.join()
    took = time.perf_counter() - begin
    warm = [size for moment, size in memory if moment >= WARM_UP * seconds]
    third = max(1, len(warm) // 3)
    return {
        "images": len(latencies),
        "errors": len(errors),
        "first error": errors[0] if errors else None,
        "images per second": len(latencies) / took,
        "CPU seconds per image": (_used(server) - used) / max(1, len(latencies)),
        "of the clients": (time.process_time() - own) / max(1, len(latencies)),
        "p50": float(np.percentile(latencies, 50)),
        "p99": float(np.percentile(latencies, 99)),
        "memory after warm-up": float(np.median(warm[:third])),
        "memory at the end": float(np.median(warm[-third:])),
    }


def _used(server: TritonServer) -> float:
    """CPU seconds of the server, its models and this process, which runs the clients."""
    total = time.process_time()
    for pid in (server.process.pid, *process_table.children(server.process.pid, STUB)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _memory(server: TritonServer) -> int:
    """Bytes of the server and its models that they share with no other process."""
    total = 0
    for pid in (server.process.pid, *process_table.children(server.process.pid, STUB)):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_"):
                total += 1024 * int(line.split()[1])
    return total


def broken(report: dict[str, Any]) -> list[str]:
    """The parts of the contract that the figures break."""
    batching, single = report["batching"], report["no batching"]
    local = sum(report[name]["images per second"] for name in ("local", "local again")) / 2
    growth = batching["memory at the end"] / batching["memory after warm-up"] - 1
    checks = {
        f"{batching['errors'] + single['errors']} errors": batching["errors"] + single["errors"] == 0,
        f"memory grew by {growth:.1%}": growth <= LARGEST_GROWTH,
        f"{batching['images per second'] / local:.2f} of segment_many": batching["images per second"]
        >= LEAST_SHARE * local,
        "batching gains nothing": batching["images per second"] > single["images per second"],
    }
    return [what for what, fine in checks.items() if not fine]
