"""What TensorRT's builder made of a graph: its kernels with their types, as its own log lists them.

The builder logs a line per kernel at the end of a build whose profiling verbosity is DETAILED. No GPU is needed to read
them, unlike for the engine inspector, which wants the plan opened.
"""

import re
from collections import Counter
from collections.abc import Iterable

import msgspec

# Kinds of kernels (Myelin's LayerType) that are matrix products: convolutions, and products of matrices.
PRODUCTS = ("correlation", "deconvolution", "gemm", "matmul")
# Names of the kernels that compute softmax(QK)V in one: "_gemm_mha_v2", "fmha", "_mha_fp8" and the like.
ATTENTION = re.compile(r"f?mha", re.IGNORECASE)
# Generated kernels are named after what they compute, in parts of up to four letters: "FcAddRelu" is a product with an
# addition and a ReLU ("Fc": fully connected). Those that only move or convert consist of the parts below.
GENERATED_PRODUCT = re.compile(r"__myl_([A-Z][a-z]+)*Fc([A-Z][a-z]+)*(_|$)")
REFORMAT = re.compile(r"reformat|__myl_(Tran|Move|Cast|Resh|Repl|Slic|Conc)+(_|$)", re.IGNORECASE)
# TensorRT's names of types -> the field's.
TYPES = {
    "Float": "FP32", "Half": "FP16", "BFloat16": "BF16", "Int8": "INT8", "Int32": "INT32", "Int64": "INT64",
}  # fmt: skip
_SCRATCH = re.compile(r"(Max Scratch|Total Activation|Total Weights) Memory: (\d+) bytes")
_PROFILE = re.compile(r"_myl(\d+)_\d+$")


class Kernel(msgspec.Struct, frozen=True):
    """One kernel of a plan, for one of its profiles.

    `kind` is TensorRT's LayerType, such as "gemm", "correlation" (a convolution) or "kgen" (generated: element-wise
    work, reductions, attention). Types are those of its inputs and outputs, weights left out. `nodes` are the nodes of
    the ONNX graph that it computes.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    profile: int

    @property
    def is_product(self) -> bool:
        return self.kind in PRODUCTS or GENERATED_PRODUCT.search(self.name) is not None

    @property
    def is_attention(self) -> bool:
        return ATTENTION.search(self.name) is not None

    @property
    def is_reformat(self) -> bool:
        return not self.is_product and REFORMAT.search(self.name) is not None

    @property
    def what(self) -> str:
        """What it does: "product", "fused attention", "reformat", or "other" work such as additions and softmax."""
        if self.is_attention:
            return "fused attention"
        return "product" if self.is_product else "reformat" if self.is_reformat else "other"

    @property
    def types(self) -> str:
        """Of the first input and the first output: "INT8 -> FP16", or "FP16" where both are the same."""
        first, last = (self.inputs or ("-",))[0], (self.outputs or ("-",))[0]
        return first if first == last else f"{first} -> {last}"


class Explanation(msgspec.Struct, frozen=True):
    """The kernels of a plan and the memory that it needs, in bytes: weights, and scratch of the largest shapes."""

    kernels: tuple[Kernel, ...]
    weights_bytes: int
    scratch_bytes: int

    def of_profile(self, profile: int = 0) -> tuple[Kernel, ...]:
        """The kernels of one profile; plans hold a set for each."""
        return tuple(kernel for kernel in self.kernels if kernel.profile == profile)

    @property
    def products(self) -> Counter[str]:
        """How many matrix products of the first profile have which types, such as "INT8 -> FP16" or "FP16"."""
        return Counter(kernel.types for kernel in self.of_profile() if kernel.is_product)

    @property
    def attentions(self) -> int:
        """Fused attentions of the first profile."""
        return sum(kernel.is_attention for kernel in self.of_profile())

    @property
    def reformats(self) -> int:
        """Kernels of the first profile that only move or convert."""
        return sum(kernel.is_reformat for kernel in self.of_profile())


class LogReader:
    """Collects from a builder's log what `explanation` returns; called with every message."""

    def __init__(self) -> None:
        self._kernels: list[Kernel] = []
        self._bytes: dict[str, int] = {}

    def __call__(self, text: str) -> None:
        if "LayerType: " in text:
            self._kernels += [kernel for kernel in map(read_kernel, text.splitlines()) if kernel is not None]
        elif found := _SCRATCH.search(text):
            what = found[1]
            self._bytes[what] = max(self._bytes.get(what, 0), int(found[2]))

    def explanation(self) -> Explanation:
        return Explanation(
            tuple(self._kernels), self._bytes.get("Total Weights", 0), self._bytes.get("Total Activation", 0)
        )


def read_kernel(line: str) -> Kernel | None:
    """The kernel that a line of the log describes; None for other lines and for calls that run nothing on the GPU."""
    found = re.match(r"\s*Name: (.+?), LayerType: (\w+), Inputs: \[", line)
    if found is None or found[2] == "shape_call":
        return None
    name, kind = found[1], found[2]
    tensors, _, end = line[found.end() :].partition(", TacticName: ")
    before, _, outputs = tensors.partition(", Outputs: [")
    inputs = before.partition(", Constants: [")[0]
    profile = _PROFILE.search(name)
    return Kernel(
        name=re.sub(r" \[profile \d+\]", "", name),
        kind=kind,
        inputs=tuple(_types(inputs)),
        outputs=tuple(_types(outputs)),
        nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]+)\]", end)),
        profile=int(profile[1]) if profile else 0,
    )


def _types(text: str) -> Iterable[str]:
    return (TYPES.get(name, name) for name in re.findall(r"Datatype: (\w+)", text))
