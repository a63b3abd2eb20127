"""What passes between client, server and model: tensors by name, limits, and the parameters of a request."""

import msgspec

# Inputs. A request has IMAGE or PIXELS; the first axis of each tensor counts the images.
IMAGE = "IMAGE"  # (B, 1) BYTES, whole image files
PIXELS = "PIXELS"  # (B, H, W, 3) uint8 RGB
CLASSES = "CLASSES"  # (B, K) BYTES, names in UTF-8; without it, a named vocabulary or the bundle's own

# Outputs; only those that a request asks for are computed.
LABELS = "LABELS"  # (B, H, W) int32, indices into CLASS_NAMES
SCORES = "SCORES"  # (B, H, W) float32
CLASS_NAMES = "CLASS_NAMES"  # (B, K) BYTES
SEGMENTS = "SEGMENTS"  # (B, 1) BYTES, JSON: a COCO run-length encoding per class present (Result.to_json)
PANOPTIC = "PANOPTIC"  # (B, H, W) int32, segment ids
PANOPTIC_SEGMENTS = "PANOPTIC_SEGMENTS"  # (B, 1) BYTES, JSON: what Result.panoptic says of each id
# What a client needs to answer further questions by itself; only sent if asked for by name.
MASK_LOGITS = "MASK_LOGITS"  # (B, M, h, w) float32
CLASS_PROBABILITIES = "CLASS_PROBABILITIES"  # (B, M, K) float32
NO_OBJECT = "NO_OBJECT"  # (B, M) float32
SIZES = "SIZES"  # (B, 6) int32: padded, network and output size, each (height, width)

EVIDENCE = (MASK_LOGITS, CLASS_PROBABILITIES, NO_OBJECT, SIZES)

# Name -> (Triton's data type, dimensions without the batch's).
INPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    IMAGE: ("TYPE_STRING", (1,)),
    PIXELS: ("TYPE_UINT8", (-1, -1, 3)),
    CLASSES: ("TYPE_STRING", (-1,)),
}
OUTPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    LABELS: ("TYPE_INT32", (-1, -1)),
    SCORES: ("TYPE_FP32", (-1, -1)),
    CLASS_NAMES: ("TYPE_STRING", (-1,)),
    SEGMENTS: ("TYPE_STRING", (1,)),
    PANOPTIC: ("TYPE_INT32", (-1, -1)),
    PANOPTIC_SEGMENTS: ("TYPE_STRING", (1,)),
    MASK_LOGITS: ("TYPE_FP32", (-1, -1, -1)),
    CLASS_PROBABILITIES: ("TYPE_FP32", (-1, -1)),
    NO_OBJECT: ("TYPE_FP32", (-1,)),
    SIZES: ("TYPE_INT32", (6,)),
}

MODEL = "vocabseg"
# Environment variable: the folder that holds the package, if it is not installed in the model's environment.
PACKAGE_PATH = "VOCABSEG_PACKAGE_PATH"
# Environment variable: set if someone supervises the model processes and restarts the server when one has died.
SUPERVISED = "VOCABSEG_SUPERVISED"
# The metric of requests that a model process is answering.
RUNNING = "vocabseg_running"
# What Triton does only for those who send the header VOCABSEG-KEY with the right value, by gRPC with a prefix that
# Triton sets before it: clients of a model need none of it. With shared memory, one could read what other clients send,
# and write into the memory of the model processes.
RESTRICTED = "model-repository,shared-memory,trace,logging"


def restrictions(key: str) -> list[str]:
    """Triton's options that keep those without the key from what is restricted."""
    rule = f"{RESTRICTED}:vocabseg-key={key}"
    return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an image of a request may cost; each is a parameter of the model's configuration."""

    # ADE20K's full vocabulary has 847 names; encoding a thousand new ones takes a CPU a quarter of a minute.
    max_names: int = 2048
    # A prompt of CLIP has at most 77 tokens. Templates may be no longer than names.
    max_name_length: int = 512
    # Names x templates: each is a run of the text encoder. ADE20K's 847 names with ViLD's 14 templates are 11,858.
    max_prompts: int = 16_384
    # 32 megapixels are 96 MB of RGB, and 128 MB each of labels and scores.
    max_pixels: int = 32_000_000
    max_image_bytes: int = 64_000_000
    # Seconds in which a model process gets further by an image or by 64 prompts; one that does not is replaced.
    max_step_seconds: int = 120


class NamedVocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """A vocabulary that requests can name."""

    names: list[str]
    seen: list[bool] | None = None
    templates: list[str] | None = None
    other: bool | list[str] = False
    ids: list[int] | None = None
    colours: list[list[int] | None] | None = None
    things: list[bool] | None = None


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a request. Lists are sent as JSON, since Triton's parameters are plain text and numbers."""

    vocabulary: str | None = None
    seen: list[str | bool] | None = None
    templates: list[str] | None = None
    other: bool | list[str] | None = None
    things: list[str | int] | None = None
    object_mask_threshold: float = 0.8
    overlap_threshold: float = 0.8
