"""What plans are built for: generations of GPUs, and which precision needs which."""

import pytest

from vocabseg.export.tensorrt.builder import BuildOptions
from vocabseg.export.tensorrt.target import choose_generations
from vocabseg.runtime.errors import ConfigurationError


@pytest.mark.parametrize(
    ("precision", "names", "expected"),
    [
        ("float16", [], ("sm80", "sm86", "sm89", "sm120")),
        ("int8", [], ("sm80", "sm86", "sm89", "sm120")),
        ("fp8", [], ("sm89", "sm120")),
        ("float16", ["sm120", "sm75", "sm120"], ("sm75", "sm120")),
        ("fp8", ["sm121"], ("sm121",)),
    ],
)
def test_generations(precision, names, expected):
    assert choose_generations("tensorrt-rtx", precision, names) == expected


@pytest.mark.parametrize(
    ("precision", "name", "text"),
    [
        ("fp8", "sm86", "sm86 has no kernels in fp8: give sm89 and newer with --gpus"),
        ("float32", "sm75", "sm75 has no kernels in float32: give sm80"),
        ("int8", "sm75", "sm75 has no kernels in int8"),
        ("bfloat16", "sm75", "sm75 has no kernels in bfloat16"),
        ("float16", "sm90", "does not build for sm90: use --engine tensorrt on that GPU"),
        ("float16", "sm100", "does not build for sm100"),
        ("float16", "sm87", "does not know 'sm87': did you mean sm8"),
    ],
)
def test_generations_that_cannot_be_built_for(precision, name, text):
    with pytest.raises(ConfigurationError, match=text):
        choose_generations("tensorrt-rtx", precision, ["sm89", name])


def test_tensorrt_builds_for_the_gpu_of_its_machine():
    assert choose_generations("tensorrt", "float16", []) == ()
    with pytest.raises(ConfigurationError, match="--gpus goes with --engine tensorrt-rtx"):
        choose_generations("tensorrt", "float16", ["sm89"])


@pytest.mark.parametrize(
    "wrong", [{"version_compatible": True}, {"hardware_compatibility": "ampere-plus"}], ids=["version", "hardware"]
)
def test_options_that_tensorrt_for_rtx_does_not_take(wrong):
    with pytest.raises(ConfigurationError, match="is of --engine tensorrt; TensorRT for RTX takes --gpus"):
        BuildOptions(**wrong).check("tensorrt-rtx")
