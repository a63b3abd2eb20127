"""`vocabseg demo`: a page on which pictures are segmented into the classes that one types."""

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vocabseg.commands.options import FOREIGN, Device, Engine, Quiet, foreign_to_demo
from vocabseg.commands.packages import require
from vocabseg.commands.terminal import announcer, progress
from vocabseg.runtime.progress import counted

if TYPE_CHECKING:
    from vocabseg.web.site import Example

HELP = "Open a page on this machine: drop a picture, type class names, click for the reasons. Ctrl-C stops it."
EXAMPLE = (
    "Example: vocabseg demo\n\n"
    "With models of your own, one bundle or a folder of them: vocabseg demo my-bundle --port 8080"
)
# Scenes that the demo model has not seen, as arguments of `render_scene`: seed, number, objects; the first is that of
# examples/scene.png.
SCENES = ((2026, 7, 5), (0, 20, None), (0, 13, None), (0, 9, None), (0, 16, None), (0, 23, None))
HEIGHT, WIDTH = 384, 512


def demo(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="A bundle, or a folder of bundles; without it, the demo model.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no access control.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 7860,
    engine: Engine = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    require(("starlette", "uvicorn", "anyio"), "the page", "web")
    from vocabseg.web.listening import address_of, listen, serve_page
    from vocabseg.web.models import Models, find_bundles
    from vocabseg.web.site import Site

    say = announcer(quiet)
    bundles, left_out = find_bundles(bundle)
    for line in left_out:
        say(f"Left out: {line}")
    models = Models(bundles, device, engine)
    with listen(host, port) as listener:
        address = address_of(listener)
        first = models.listed()[0]
        with progress(quiet) as report:
            report(f"opening {first['name']} in {first['precisions'][0]}", 0, 1)
            models.segmenter(first["name"], first["precisions"][0])
        site = Site(models, examples(), lambda opened, names: FOREIGN if foreign_to_demo(opened, names) else "")
        if not _is_loopback(host):
            say(f"Everyone who can reach {host} can use the page: there is no access control")

        def ready() -> None:
            print(f"Ready: {counted(len(bundles), 'model')} at {address} (Ctrl-C stops it)", flush=True)

        try:
            serve_page(site, listener, host, ready)
        except KeyboardInterrupt:  # raised again once the answers under way are done
            say("Stopped")


def examples() -> "list[Example]":
    """Pictures to try, each with the names of what is in it."""
    from vocabseg.benchmarks.scenes.world import CLASSES, render_scene
    from vocabseg.web.site import Example

    found = []
    for place, (seed, number, objects) in enumerate(SCENES, start=1):
        scene = render_scene(seed, "test", number, (HEIGHT, WIDTH), objects)
        names = dict.fromkeys(CLASSES[segment.class_index] for segment in scene.segments)
        found.append(Example(f"scene-{place}.png", scene.image, ", ".join(names)))
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
