"""A server under load, and the same segmenter alone in a process; memory is that of the server and its models."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.benchmarks.scale.occupancy import IdleCores, cpu_seconds
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
# Shares of the full rate at which requests arrive by themselves, and most that are under way then.
ARRIVALS = (0.5, 0.9)
UNDER_WAY = 64
# The same images as the clients send, decoded here, too.
LOCAL = """
import itertools, json, os, sys, time
import vocabseg
from vocabseg.benchmarks.scale.occupancy import IdleCores
from vocabseg.runtime.images import load_image
bundle, seconds, vocabulary, *paths = json.loads(sys.argv[1])
segmenter = vocabseg.load(bundle)
contents = [open(path, "rb").read() for path in paths]
list(segmenter.segment_many(contents[:4], vocabulary))
begin = time.process_time()
for content in contents:
    load_image(content)
decoding = (time.process_time() - begin) / len(contents)
with IdleCores([os.getpid()]) as idle:
    begin, used, count = time.perf_counter(), time.process_time(), 0
    for result in segmenter.segment_many(itertools.cycle(contents), vocabulary):
        count += 1
        if time.perf_counter() - begin >= seconds:
            break
    took, used = time.perf_counter() - begin, time.process_time() - used
print(count, took, used - idle.cost, decoding, idle.share)
"""


def alone(bundle: Path | None, images: list[Path], seconds: float) -> dict[str, float]:
    """Images per second of `segment_many` in a process of its own."""
    given = json.dumps([None if bundle is None else str(bundle), seconds, VOCABULARIES[0], *map(str, images)])
    done = subprocess.run([sys.executable, "-c", LOCAL, given], capture_output=True, text=True, check=True)
    count, took, used, decoding, idle = map(float, done.stdout.split())
    return {
        "images per second": count / took,
        "CPU seconds per image": used / count,
        "of decoding": decoding,
        "idle cores": idle,
    }


def served(
    bundle: Bundle,
    serving: Serving,
    environment: Path,
    folder: Path,
    protocol: str,
    clients: int,
    images: list[Path],
    seconds: float,
    arrivals: Sequence[float] = (),
) -> dict[str, Any]:
    """The rates, latencies and memory of a server in `folder` under `clients` clients for `seconds`.

    After that, latencies at each share in `arrivals` of that rate, unless nothing was answered. `environment` is where
    the server is installed.
    """
    (folder / "server").mkdir(parents=True)
    write_repository(bundle, folder / "models", serving, beside=True)
    server = start(environment, folder / "models", serving.name, folder / "server", ports=Ports(0, 0, 0))
    try:
        server.wait_until_ready(300)
        url, contents = server.urls()[protocol], [path.read_bytes() for path in images]
        found = _load(server, url, clients, contents, seconds)
        for share in arrivals if found["images"] else ():
            rate = share * found["images per second"]
            found[f"at {share:.0%}"] = _arriving(url, contents, rate, seconds / 4)
        return found
    finally:
        server.stop()


def _load(server: TritonServer, url: str, clients: int, contents: list[bytes], seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    errors: list[str] = []
    models = process_table.children(server.process.pid, STUB)

    def used() -> dict[str, float]:
        """CPU seconds of the server, its models and this process, which runs the clients."""
        return {
            "of the models": sum(map(cpu_seconds, models)),
            "of the server": cpu_seconds(server.process.pid),
            "of the clients": time.process_time(),
        }

    begin, before, watching = time.perf_counter(), used(), time.thread_time()
    end = begin + seconds

    def work(number: int, client: Client) -> None:
        turn = number
        while time.perf_counter() < end:
            asked = time.perf_counter()
            _ask(client, contents, turn, asked, latencies, errors)
            turn += 1

    with Client(url, retries=0) as client, IdleCores([*models, server.process.pid, os.getpid()]) as idle:
        workers = [threading.Thread(target=work, args=(number, client)) for number in range(clients)]
        for worker in workers:
            worker.start()
        memory = []
        while time.perf_counter() < end:
            time.sleep(min(1.0, seconds / 20))
            memory.append((time.perf_counter() - begin, _memory(server)))
        for worker in workers:
            worker.join()
    took, after = time.perf_counter() - begin, used()
    after["of the clients"] -= idle.cost + time.thread_time() - watching  # this thread looks at the memory
    shares = {name: (after[name] - before[name]) / max(1, len(latencies)) for name in before}
    warm = [size for moment, size in memory if moment >= WARM_UP * seconds]
    third = max(1, len(warm) // 3)
    return {
        **_told(latencies, errors),
        "images per second": len(latencies) / took,
        "CPU seconds per image": sum(shares.values()),
        **shares,
        "idle cores": idle.share,
        "memory after warm-up": float(np.median(warm[:third])),
        "memory at the end": float(np.median(warm[-third:])),
    }


def _arriving(url: str, contents: list[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Latencies of requests that arrive at random (a Poisson process), whether or not earlier ones are answered.

    They count from the moment of arrival, so also while a request waits for one of the clients' threads.
    """
    generator = np.random.default_rng(0)
    moments = np.cumsum(generator.exponential(1 / rate, max(1, round(rate * seconds))))
    latencies: list[float] = []
    errors: list[str] = []
    asked: list[Future[None]] = []
    with Client(url, retries=0) as client, ThreadPoolExecutor(UNDER_WAY) as pool:
        begin = time.perf_counter()
        for turn, moment in enumerate(moments):
            time.sleep(max(0.0, begin + moment - time.perf_counter()))
            asked.append(pool.submit(_ask, client, contents, turn, begin + moment, latencies, errors))
    for call in asked:
        call.result()
    return {**_told(latencies, errors), "requests per second": rate}


def _ask(
    client: Client, contents: list[bytes], turn: int, since: float, latencies: list[float], errors: list[str]
) -> None:
    try:
        client(contents[turn % len(contents)], VOCABULARIES[turn % 2])
        latencies.append(time.perf_counter() - since)
    except VocabsegError as error:
        errors.append(str(error))


def _told(latencies: list[float], errors: list[str]) -> dict[str, Any]:
    return {
        "images": len(latencies),
        "errors": len(errors),
        "first error": errors[0] if errors else None,
        "p50": float(np.percentile(latencies, 50)) if latencies else None,
        "p99": float(np.percentile(latencies, 99)) if latencies else None,
    }


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
