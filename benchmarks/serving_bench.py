"""A server under load against the same segmenter in one process: `python -m vocabseg.benchmarks.serving_bench`.

Three runs on the same cores, one after the other: `segment_many` in a process of its own; clients against a server that
batches; the same without batching. Clients, server and model share the cores, as the figure to compare with has them
for itself. Memory is that of the server and its model processes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from vocabseg.runtime.bundle.folder import Bundle, open_bundle
from vocabseg.runtime.doctor import processor
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.errors import VocabsegError
from vocabseg.runtime.threads import usable_cpus
from vocabseg.serving import processes
from vocabseg.serving.client import Client
from vocabseg.serving.configuration import Serving
from vocabseg.serving.environment import prepare
from vocabseg.serving.repository import write_repository
from vocabseg.serving.server import STUB, Ports, Server, start

# Contract: a server reaches this share of `segment_many`, and batching gains something.
LEAST_SHARE = 0.9
# Memory of a server that has warmed up may grow by so much: what allocators keep varies by some megabytes.
LARGEST_GROWTH = 0.02
VOCABULARIES = (["red circle", "blue square", "grass"], ["green star", "sky", "water", "sand"])
# Of the time, before memory is looked at.
WARM_UP = 0.25


def main() -> None:
    """Measure, print a table, and exit with 3 where the contract is broken."""
    arguments = _arguments()
    bundle = open_bundle(arguments.bundle)
    with tempfile.TemporaryDirectory(prefix="vocabseg-serving-bench-") as scratch:
        folder = Path(scratch)
        images = _images(folder, arguments.images)
        report: dict[str, Any] = {
            "machine": processor(),
            "python": platform.python_version(),
            "cores": usable_cpus(),
            "bundle": bundle.manifest.name,
            "clients": arguments.clients,
            "seconds": arguments.seconds,
            "instances": arguments.instances,
            "threads": arguments.threads,
            "protocol": arguments.protocol,
        }
        print(f"segment_many for {arguments.local_seconds:g} s ...", file=sys.stderr, flush=True)
        report["local"] = _local(arguments, images)
        for name, max_batch in (("batching", arguments.max_batch), ("no batching", 1)):
            seconds = arguments.seconds if max_batch > 1 else arguments.seconds / 4
            print(f"{arguments.clients} clients for {seconds:g} s, {name} ...", file=sys.stderr, flush=True)
            report[name] = _served(bundle, folder / name.replace(" ", "-"), arguments, images, max_batch, seconds)
        report["local again"] = _local(arguments, images)
    report["broken"] = _broken(report)
    _print(report)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(3 if report["broken"] else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vocabseg.benchmarks.serving_bench", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="default: the built-in demo model")
    parser.add_argument("--seconds", type=float, default=120, help="of the run with batching")
    parser.add_argument("--local-seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--protocol", choices=("http", "grpc"), default="grpc")
    parser.add_argument("--output", type=Path, help="a JSON file")
    return parser.parse_args()


def _images(folder: Path, count: int) -> list[Path]:
    """Scenes that the demo model knows, as files."""
    from PIL import Image

    from vocabseg.benchmarks.scenes.world import render_scene

    paths = []
    for number in range(count):
        path = folder / f"scene-{number}.png"
        Image.fromarray(render_scene(0, "test", number).image).save(path)
        paths.append(path)
    return paths


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


def _local(arguments: argparse.Namespace, images: list[Path]) -> dict[str, float]:
    """Images per second of `segment_many` in a process of its own."""
    bundle = None if arguments.bundle is None else str(arguments.bundle)
    given = json.dumps([bundle, arguments.local_seconds, VOCABULARIES[0], *map(str, images)])
    done = subprocess.run([sys.executable, "-c", LOCAL, given], capture_output=True, text=True, check=True)
    count, seconds, used = map(float, done.stdout.split())
    return {"images per second": count / seconds, "CPU seconds per image": used / count}


def _served(
    bundle: Bundle, folder: Path, arguments: argparse.Namespace, images: list[Path], max_batch: int, seconds: float
) -> dict[str, Any]:
    choice = choose(None, "cpu", None, bundle.manifest.graph_bytes)
    environment = prepare(choice.name, lambda what, done, total: None)
    serving = Serving(
        instances=arguments.instances, threads=arguments.threads, max_batch=max_batch,
        engine=choice.name, precision=choice.precision,
    )  # fmt: skip
    folder.mkdir()
    write_repository(bundle, folder / "models", serving)
    (folder / "server").mkdir()
    server = start(environment, folder / "models", serving.name, folder / "server", ports=Ports(0, 0, 0))
    try:
        server.wait_until_ready(300)
        return _load(server, server.urls()[arguments.protocol], arguments.clients, images, seconds)
    finally:
        server.stop()


def _load(server: Server, url: str, clients: int, images: list[Path], seconds: float) -> dict[str, Any]:
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


def _used(server: Server) -> float:
    """CPU seconds of the server, its models and this process, in which the clients are."""
    total = time.process_time()
    for pid in (server.process.pid, *processes.children(server.process.pid, STUB)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _memory(server: Server) -> int:
    """Bytes of the server and its models that no other process shares."""
    total = 0
    for pid in (server.process.pid, *processes.children(server.process.pid, STUB)):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_"):
                total += 1024 * int(line.split()[1])
    return total


def _broken(report: dict[str, Any]) -> list[str]:
    served, alone = report["batching"], report["no batching"]
    local = sum(report[name]["images per second"] for name in ("local", "local again")) / 2
    growth = served["memory at the end"] / served["memory after warm-up"] - 1
    checks = {
        f"{served['errors'] + alone['errors']} errors": served["errors"] + alone["errors"] == 0,
        f"memory grew by {growth:.1%}": growth <= LARGEST_GROWTH,
        f"{served['images per second'] / local:.2f} of segment_many": served["images per second"]
        >= LEAST_SHARE * local,
        "batching gains nothing": served["images per second"] > alone["images per second"],
    }
    return [what for what, fine in checks.items() if not fine]


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['bundle']}, {report['instances']} x {report['threads']} threads")
    for name in ("local", "local again"):
        found = report[name]
        print(f"segment_many alone: {found['images per second']:.2f} images/s, {_cpu(found)}")
    for name in ("batching", "no batching"):
        found = report[name]
        memory = f"{found['memory after warm-up'] / 1e6:.0f} -> {found['memory at the end'] / 1e6:.0f} MB"
        print(
            f"{report['clients']} clients, {name}: {found['images per second']:.2f} images/s, {_cpu(found)}, "
            f"{found['images']} images, {found['errors']} errors, p50 {found['p50'] * 1e3:.0f} ms, "
            f"p99 {found['p99'] * 1e3:.0f} ms, memory {memory}"
        )
    print("broken: " + "; ".join(report["broken"]) if report["broken"] else "the contract holds")


def _cpu(found: dict[str, Any]) -> str:
    """What tells most on a machine that has other work, too."""
    clients = f" ({1e3 * found['of the clients']:.1f} the clients')" if "of the clients" in found else ""
    return f"{1e3 * found['CPU seconds per image']:.1f} ms of CPU per image{clients}"


if __name__ == "__main__":
    main()
