"""`vocabseg serve`: a bundle in; a Triton Inference Server that answers for it, until it is told to stop."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vocabseg.commands.options import (
    Delay,
    MaxBatch,
    ModelName,
    Precision,
    Queue,
    Quiet,
    RequestLimits,
    Settings,
    Threads,
    Vocabularies,
)
from vocabseg.commands.terminal import progress
from vocabseg.commands.triton import named_vocabularies, serving_of

HELP = "Serve a bundle on this machine, by HTTP and gRPC, with NVIDIA's tritonserver; Ctrl-C stops it."
EXAMPLE = (
    "Example: vocabseg serve my-bundle\n\n"
    "Then, in Python: vocabseg.client.Client('http://127.0.0.1:8000')('photo.jpg', ['cat', 'grass'])\n\n"
    "The first time, the server is downloaded (55 MB) into the cache folder, or $VOCABSEG_SERVING_DIR."
)


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="The bundle's folder; without it, the built-in demo model.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no access control.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8002,
    name: ModelName = "vocabseg",
    vocabularies: Vocabularies = None,
    instances: Annotated[int, typer.Option(min=0, help="Processes. Default: as many as fit the CPU's cores.")] = 0,
    threads: Threads = 0,
    max_batch: MaxBatch = 8,
    delay: Delay = 2.0,
    queue: Queue = 128,
    limits: RequestLimits = None,
    settings: Settings = None,
    engine: Annotated[str | None, typer.Option(help="openvino or onnxruntime; default: the fastest installed.")] = None,
    precision: Precision = None,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Download the server and stop.")] = False,
    start_seconds: Annotated[float, typer.Option(min=1, help="Give up when it is not ready by then.")] = 300,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show everything the server says.")] = False,
    quiet: Quiet = False,
) -> None:
    from vocabseg.runtime.bundle.settings import open_adjusted
    from vocabseg.runtime.engines.choose import choose
    from vocabseg.serving.environment import check_platform, prepare
    from vocabseg.serving.keeper import SCRATCH, Keeper, sweep
    from vocabseg.serving.repository import write_repository
    from vocabseg.serving.server import Ports

    check_platform()
    named = named_vocabularies(vocabularies or [])
    opened = open_adjusted(bundle, settings or [])
    choice = choose(engine, "cpu", precision, opened.manifest.graph_bytes)
    serving = serving_of(
        name, "", instances, threads, max_batch, delay, queue, limits or [], choice.name, choice.precision,
    )  # fmt: skip
    with progress(quiet) as report:
        environment = prepare(choice.name, report)
    if prepare_only:
        print(environment)
        return
    # Both from the outset: a signal that comes while the server starts must stop it, too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
        folder = Path(scratch)
        write_repository(opened, folder / "models", serving, named)
        keeper = Keeper(environment, folder, name, host, Ports(http_port, grpc_port, metrics_port), verbose)
        try:
            with progress(quiet) as report:
                report(f"starting {serving.instances} x {serving.threads} cores with {choice.key}", 0, 1)
                urls = keeper.start(start_seconds).urls()
            print(f"Ready: {opened.manifest.name} at {urls['http']} and {urls['grpc']}, metrics {urls['metrics']}")
            sys.stdout.flush()
            keeper.keep(lambda line: print(line, file=sys.stderr, flush=True))
        except Stop:
            if not quiet:
                print("Stopping: requests that were taken are still answered", file=sys.stderr, flush=True)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            keeper.stop()


class Stop(Exception):
    """A signal said so."""


def _interrupt(number: int, frame: object) -> None:
    raise Stop
