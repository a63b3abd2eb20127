"""Triton's config.pbtxt for a bundle. https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto"""

import json

import msgspec

from vocabseg.serving.protocol import CLASSES, INPUTS, MODEL, OUTPUTS, PIXELS, RequestLimits


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle is served.

    Attributes:
        name: the model's name in the server.
        instances: model instances, each a process of its own.
        threads: CPU cores of each instance.
        gpus: GPUs to run on, `instances` on each; none for the CPU.
        max_batch: most images run together; 1 for no batching.
        delay: seconds that a request may wait for others to join it.
        queue: requests that may wait; those beyond are refused, and clients come back later.
        patience: seconds after which a waiting request is refused; a request may ask for less.
        engine, precision: as for `vocabseg.load`.
    """

    name: str = MODEL
    instances: int = 1
    threads: int = 1
    gpus: tuple[int, ...] = ()
    max_batch: int = 8
    delay: float = 0.002
    queue: int = 128
    patience: float = 30.0
    engine: str | None = None
    precision: str | None = None
    limits: RequestLimits = RequestLimits()


def model_configuration(serving: Serving) -> str:
    """The text of config.pbtxt."""
    blocks = [
        f"name: {_text(serving.name)}",
        'backend: "python"',
        f"max_batch_size: {serving.max_batch}",
        *(_input(name, *INPUTS[name]) for name in INPUTS),
        *(
            f"output {{ name: {_text(name)} data_type: {kind} {_dims(dims)} }}"
            for name, (kind, dims) in OUTPUTS.items()
        ),
        _instances(serving),
        _batching(serving),
        _warm_up(),
        *(_parameter(name, value) for name, value in _parameters(serving).items()),
    ]
    return "\n".join(blocks) + "\n"


# The names that a server warms up with, in Triton's form of BYTES: each behind its length in 4 bytes.
WARM_UP_FILE = "classes"
WARM_UP_NAMES = ("thing", "background")
WARM_UP_SIZE = (480, 640)


def warm_up_classes() -> bytes:
    """The content of the warm-up's file of class names."""
    return b"".join(len(name.encode()).to_bytes(4, "little") + name.encode() for name in WARM_UP_NAMES)


def _input(name: str, kind: str, dims: tuple[int, ...]) -> str:
    # Without `allow_ragged_batch` only requests of equal shapes would be batched together.
    return f"input {{ name: {_text(name)} data_type: {kind} {_dims(dims)} optional: true allow_ragged_batch: true }}"


def _instances(serving: Serving) -> str:
    if not serving.gpus:
        return f"instance_group {{ kind: KIND_CPU count: {serving.instances} }}"
    gpus = ", ".join(map(str, serving.gpus))
    return f"instance_group {{ kind: KIND_GPU count: {serving.instances} gpus: [ {gpus} ] }}"


def _batching(serving: Serving) -> str:
    return (
        "dynamic_batching {\n"
        f"  max_queue_delay_microseconds: {round(serving.delay * 1e6)}\n"
        "  default_queue_policy {\n"
        "    timeout_action: REJECT\n"
        f"    default_timeout_microseconds: {round(serving.patience * 1e6)}\n"
        "    allow_timeout_override: true\n"
        f"    max_queue_size: {serving.queue}\n"
        "  }\n"
        "}"
    )


def _warm_up() -> str:
    height, width = WARM_UP_SIZE
    pixels = f"value {{ data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] random_data: true }}"
    names = f"value {{ data_type: TYPE_STRING dims: [ {len(WARM_UP_NAMES)} ] input_data_file: {_text(WARM_UP_FILE)} }}"
    return (
        'model_warmup {\n  name: "an image"\n  batch_size: 1\n'
        f"  inputs {{ key: {_text(PIXELS)} {pixels} }}\n"
        f"  inputs {{ key: {_text(CLASSES)} {names} }}\n"
        "}"
    )


def _parameters(serving: Serving) -> dict[str, str]:
    given = {
        "threads": "" if serving.gpus else str(serving.threads),
        "engine": serving.engine or "",
        "precision": serving.precision or "",
    }
    limits = {name: str(value) for name, value in msgspec.structs.asdict(serving.limits).items()}
    return {**{name: value for name, value in given.items() if value}, **limits}


def _parameter(name: str, value: str) -> str:
    return f"parameters {{ key: {_text(name)} value {{ string_value: {_text(value)} }} }}"


def _dims(dims: tuple[int, ...]) -> str:
    return f"dims: [ {', '.join(map(str, dims))} ]"


def _text(value: str) -> str:
    return json.dumps(value)
