"""Options that several commands share, and the target they describe."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vocabseg.runtime.bundle.folder import Bundle
    from vocabseg.runtime.segmenter.segmenter import Segmenter

BundleArgument = Annotated[
    Path | None, typer.Argument(help="The bundle's folder; without it, the built-in demo model.", show_default=False)
]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="The bundle's folder; without it, the built-in demo model.")
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", "-c", help="Class names separated by commas, or @FILE with one name per line."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, such as region.mask_threshold=0.4.")
]
Engine = Annotated[str | None, typer.Option(help="openvino, onnxruntime or tensorrt; default: the fastest here.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16, int8 or fp8; default: the engine's own.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

# Of a served model.
ModelName = Annotated[str, typer.Option(help="The model's name in the server.")]
Vocabularies = Annotated[
    list[str] | None,
    typer.Option("--vocabulary", help="NAME=NAMES or NAME=@FILE: requests may call it by name; may be repeated."),
]
Threads = Annotated[int, typer.Option(min=0, help="CPU cores of each process. Default: up to 4.")]
MaxBatch = Annotated[int, typer.Option(min=1, help="Most images run together.")]
Delay = Annotated[float, typer.Option(min=0, help="Milliseconds a request may wait for others.")]
Queue = Annotated[int, typer.Option(min=1, help="Requests that may wait; further ones are refused.")]
RequestLimits = Annotated[
    list[str] | None,
    typer.Option("--limit", help="max_names=, max_name_length=, max_pixels= or max_image_bytes=NUMBER."),
]


@dataclass(frozen=True)
class Target:
    """The bundle a command works on (None: the demo model) and how to run it, as the options say."""

    bundle: Path | None = None
    device: str = "auto"
    engine: str | None = None
    precision: str | None = None
    settings: Sequence[str] | None = None

    @cached_property
    def opened(self) -> "Bundle":
        """The bundle with the settings applied, opened and verified once; raises BundleError, ConfigurationError."""
        from vocabseg.runtime.bundle.settings import open_adjusted

        return open_adjusted(self.bundle, self.settings or ())

    def segmenter(self) -> "Segmenter":
        """The opened bundle, ready to run; raises EngineError where this machine cannot."""
        from vocabseg.runtime.segmenter.segmenter import Segmenter

        return Segmenter(self.opened, self.device, self.engine, self.precision)
