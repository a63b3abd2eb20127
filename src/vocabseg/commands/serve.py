"""`vocabseg serve`: a bundle in; a Triton Inference Server that serves it, until it is stopped."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vocabseg.commands.options import BundleArgument, Precision, Quiet, Settings, Target, with_groups
from vocabseg.commands.served import ServedModel
from vocabseg.commands.terminal import announcer, progress

HELP = "Serve a bundle on this machine, by HTTP and gRPC, with NVIDIA's tritonserver; Ctrl-C stops it."
EXAMPLE = (
    "Example: vocabseg serve my-bundle\n\n"
    "Then, in Python: vocabseg.client.Client('http://127.0.0.1:8000')('photo.jpg', ['cat', 'grass'])\n\n"
    "The first time, the server is downloaded (55 MB) into the cache folder, or $VOCABSEG_SERVING_DIR."
)


class Stop(Exception):
    """SIGTERM or SIGINT."""


@with_groups
def serve(
    served: ServedModel,
    bundle: BundleArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no access control.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8002,
    settings: Settings = None,
    engine: Annotated[str | None, typer.Option(help="openvino or onnxruntime; default: the fastest installed.")] = None,
    precision: Precision = None,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Download the server and stop.")] = False,
    start_seconds: Annotated[float, typer.Option(min=1, help="Give up if it is not ready by then.")] = 300,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show everything the server logs.")] = False,
    quiet: Quiet = False,
) -> None:
    from vocabseg.runtime.engines.choose import choose
    from vocabseg.serving.model_repository.writer import write_repository
    from vocabseg.serving.server.environment import check_platform, prepare
    from vocabseg.serving.server.supervisor import SCRATCH, Supervisor, sweep
    from vocabseg.serving.server.triton_server import Ports

    check_platform()
    named = served.named()
    opened = Target(bundle, settings=settings).opened
    opened.require_proposals()
    choice = choose(engine, "cpu", precision, opened.manifest.graph_bytes)
    serving = served.serving("", choice.name, choice.precision)
    with progress(quiet) as report:
        environment = prepare(choice.name, report, opened.manifest.packages)
    if prepare_only:
        print(environment)
        return
    # Both from the start: a signal that comes while the server starts must stop it, too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
        folder = Path(scratch)
        write_repository(opened, folder / "models", serving, named, beside=True)
        ports = Ports(http_port, grpc_port, metrics_port)
        supervisor = Supervisor(environment, folder, serving.name, host, ports, verbose, start_seconds)
        try:
            with progress(quiet) as report:
                report(f"starting {serving.instances} x {serving.threads} cores with {choice.key}", 0, 1)
                urls = supervisor.start().urls()
            print(f"Ready: {opened.manifest.name} at {urls['http']} and {urls['grpc']}, metrics {urls['metrics']}")
            sys.stdout.flush()
            supervisor.watch(announcer(quiet=False))
        except Stop:
            announcer(quiet)("Stopping: requests that were accepted are still answered")
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            supervisor.stop()


def _interrupt(number: int, frame: object) -> None:
    raise Stop
