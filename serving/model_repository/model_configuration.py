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
        delay: seconds that a request may wait for others to join its batch.
        queue: requests that may wait; further ones are refused, and clients try again later.
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


# The names that a server warms up with, in Triton's form of BYTES: each after its length in 4 bytes.
WARM_UP_FILE = "classes"
WARM_UP_NAMES = ("thing", "background")

TEXT = """name: {name}
backend: "python"
max_batch_size: {max_batch}
{tensors}
instance_group {{ {instances} }}
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {patience}
    allow_timeout_override: true
    max_queue_size: {queue}
  }}
}}
model_warmup {{
  name: "an image"
  batch_size: 1
  inputs {{ key: "{pixels}" value {{ data_type: TYPE_UINT8 dims: [ 480, 640, 3 ] random_data: true }} }}
  inputs {{ key: "{classes}" value {{ data_type: TYPE_STRING dims: [ {names} ] input_data_file: "{names_file}" }} }}
}}
{parameters}
"""


def model_configuration(serving: Serving) -> str:
    """The text of config.pbtxt."""
    # Without `allow_ragged_batch` only requests of equal shapes would be batched together.
    tensors = [f"input {{ {_tensor(name, *INPUTS[name])} optional: true allow_ragged_batch: true }}" for name in INPUTS]
    tensors += [f"output {{ {_tensor(name, *OUTPUTS[name])} }}" for name in OUTPUTS]
    instances = f"kind: KIND_CPU count: {serving.instances}"
    if serving.gpus:
        gpus = ", ".join(map(str, serving.gpus))
        instances = f"kind: KIND_GPU count: {serving.instances} gpus: [ {gpus} ]"
    parameters = {
        "threads": None if serving.gpus else serving.threads,
        "engine": serving.engine,
        "precision": serving.precision,
        **msgspec.structs.asdict(serving.limits),
    }
    return TEXT.format(
        name=json.dumps(serving.name),
        max_batch=serving.max_batch,
        tensors="\n".join(tensors),
        instances=instances,
        delay=round(serving.delay * 1e6),
        patience=round(serving.patience * 1e6),
        queue=serving.queue,
        pixels=PIXELS,
        classes=CLASSES,
        names=len(WARM_UP_NAMES),
        names_file=WARM_UP_FILE,
        parameters="\n".join(
            f"parameters {{ key: {json.dumps(name)} value {{ string_value: {json.dumps(str(value))} }} }}"
            for name, value in parameters.items()
            if value
        ),
    )


def warm_up_classes() -> bytes:
    """The content of the warm-up's file of class names."""
    return b"".join(len(name.encode()).to_bytes(4, "little") + name.encode() for name in WARM_UP_NAMES)


def _tensor(name: str, kind: str, dims: tuple[int, ...]) -> str:
    return f"name: {json.dumps(name)} data_type: {kind} dims: [ {', '.join(map(str, dims))} ]"
