"""Options that several commands have, said once."""

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, such as region.mask_threshold=0.4.")
]
Engine = Annotated[str | None, typer.Option(help="openvino, onnxruntime or tensorrt; default: the fastest here.")]
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
