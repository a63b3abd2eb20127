"""A server under load against the same segmenter in one process: `python -m vocabseg.benchmarks.serving_bench`.

Three runs on the same cores, one after the other: `segment_many` in a process of its own; clients against a server that
batches; the same without batching. Clients, server and model share the cores, which `segment_many` has for itself.
After the full load, requests arrive at random at shares of its rate, which shows what a user waits for. Memory is that
of the server and its model processes.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from vocabseg.benchmarks.scale.serving import ARRIVALS, alone, broken, served
from vocabseg.benchmarks.scenes.files import write_scenes
from vocabseg.runtime.bundle.folder import open_bundle
from vocabseg.runtime.doctor import processor
from vocabseg.runtime.engines.choose import choose
from vocabseg.runtime.progress import silent
from vocabseg.runtime.threads import usable_cpus
from vocabseg.serving.model_repository.model_configuration import Serving
from vocabseg.serving.server.environment import prepare


def main() -> None:
    """Measure, print a table, and exit with 3 where the contract is broken."""
    arguments = _arguments()
    bundle = open_bundle(arguments.bundle)
    choice = choose(None, "cpu", None, bundle.manifest.graph_bytes)
    environment = prepare(choice.name, silent)
    kept = ("clients", "seconds", "instances", "threads", "protocol")
    report: dict[str, Any] = {
        "machine": processor(),
        "python": platform.python_version(),
        "cores": usable_cpus(),
        "bundle": bundle.manifest.name,
        **{name: getattr(arguments, name) for name in kept},
    }
    with tempfile.TemporaryDirectory(prefix="vocabseg-serving-bench-") as scratch:
        folder = Path(scratch)
        images = write_scenes(folder, arguments.images)
        print(f"segment_many for {arguments.local_seconds:g} s ...", file=sys.stderr, flush=True)
        report["local"] = alone(arguments.bundle, images, arguments.local_seconds)
        for name, max_batch, share, arrivals in (
            ("batching", arguments.max_batch, 1.0, ARRIVALS), ("no batching", 1, 0.25, ()),
        ):  # fmt: skip
            seconds = share * arguments.seconds
            print(f"{arguments.clients} clients for {seconds:g} s, {name} ...", file=sys.stderr, flush=True)
            serving = Serving(
                instances=arguments.instances, threads=arguments.threads, max_batch=max_batch,
                engine=choice.name, precision=choice.precision,
            )  # fmt: skip
            report[name] = served(
                bundle, serving, environment, folder / name.replace(" ", "-"),
                arguments.protocol, arguments.clients, images, seconds, arrivals,
            )  # fmt: skip
        report["local again"] = alone(arguments.bundle, images, arguments.local_seconds)
    report["broken"] = broken(report)
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


def _print(report: dict[str, Any]) -> None:
    print(f"{report['machine']}; {report['bundle']}, {report['instances']} x {report['threads']} threads")
    for name in ("local", "local again"):
        found = report[name]
        print(f"segment_many alone: {found['images per second']:.2f} images/s")
    for name in ("batching", "no batching"):
        found = report[name]
        memory = f"{found['memory after warm-up'] / 1e6:.0f} -> {found['memory at the end'] / 1e6:.0f} MB"
        print(
            f"{report['clients']} clients, {name}: {found['images per second']:.2f} images/s, "
            f"{found['images']} images, {found['errors']} errors, {_waits(found)}, memory {memory}"
        )
        if found["errors"]:
            print(f"first error: {found['first error']}")
    for share in ARRIVALS:
        if found := report["batching"].get(f"at {share:.0%}"):
            print(f"arriving at {share:.0%}: {found['requests per second']:.2f} images/s, {_waits(found)}")
    if report["batching"]["images"]:
        print(_breakdown(report))
    print("broken: " + "; ".join(report["broken"]) if report["broken"] else "the contract holds")


def _waits(found: dict[str, Any]) -> str:
    if not found["images"]:
        return "no answer"
    return f"p50 {found['p50'] * 1e3:.0f} ms, p99 {found['p99'] * 1e3:.0f} ms"


def _breakdown(report: dict[str, Any]) -> str:
    """Where an image's time goes; CPU time is the fairest figure on a machine that has other work, too."""
    found, local = report["batching"], [report["local"], report["local again"]]
    alone, decoding, idle = (
        sum(run[name] for run in local) / 2 for name in ("CPU seconds per image", "of decoding", "idle cores")
    )
    rows = {
        "decoding": decoding,
        "the rest of segment_many": alone - decoding,
        "reading requests and sending answers": found["of the models"] - alone,
        "tritonserver": found["of the server"],
        "clients": found["of the clients"],
    }
    lines = [f"{1e3 * seconds:8.2f} ms  {name}" for name, seconds in rows.items()]
    total = found["CPU seconds per image"]
    return "\n".join([
        "CPU time of an image:", *lines, f"{1e3 * total:8.2f} ms in all, {alone / total:.2f} of it segment_many's; "
        f"without the clients {alone / (total - found['of the clients']):.2f}",
        f"idle cores: {found['idle cores']:.1%}, with segment_many {idle:.1%}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
