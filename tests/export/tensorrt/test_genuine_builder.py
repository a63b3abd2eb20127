"""NVIDIA's own parser and builder (of TensorRT for RTX, which need no GPU) on graphs of the demo and of exports."""

import os
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from tests.bundles import bundle_for_case
from tests.export.graph.small_graphs import export_image, export_proposal, export_text
from tests.export.tensorrt.quantised import add_every_precision, quantise
from vocabseg.export.half.convert import write_half
from vocabseg.export.half.recipe import default_recipe
from vocabseg.export.tensorrt.builder import BuildOptions, build_plan
from vocabseg.export.tensorrt.profiles import default_profiles
from vocabseg.export.tensorrt.target import choose_generations, open_target
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.plans import Range, plan_variant
from vocabseg.runtime.errors import EngineError

MAGIC = b"vtrt"
PUBLISHED = "b2_r101c_vitb16_separate"
TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "fp8": "FP8"}
SCRATCH_MB = {"proposal": 20, "image_encoder": 25, "text_encoder": 30}


@pytest.fixture(scope="module", autouse=True)
def builder():
    """CI never goes without; elsewhere the package may be missing."""
    if find_spec("tensorrt_rtx_bindings") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no genuine builder: pip install 'vocabseg[rtx]'")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo model in every precision."""
    return add_every_precision(shutil.copytree(demo_folder(), tmp_path_factory.mktemp("genuine") / "demo"))


def target(precision, *names):
    return open_target("tensorrt-rtx", 0, choose_generations("tensorrt-rtx", precision, names))


def build(bundle, graph, precision, *names):
    record = bundle.graph(graph, plan_variant(precision))
    profiles = default_profiles(bundle.manifest, graph, record)
    return build_plan(bundle.path(record.file), profiles, BuildOptions(), target(precision, *names))


@pytest.mark.parametrize("graph", ["proposal", "image_encoder", "text_encoder"])
@pytest.mark.parametrize("precision", list(TYPES))
def test_every_graph_of_the_demo_in_every_precision(demo, precision, graph):
    built = build(demo, graph, precision, "sm89")
    said = built.explanation
    assert built.data.startswith(MAGIC)
    assert said.scratch_bytes < SCRATCH_MB[graph] * 1e6
    assert said.weights_bytes > 100_000
    inputs = {types.split(" ")[0] for types in said.products}
    if precision in ("int8", "fp8") and graph == "text_encoder":
        assert inputs == {"FP16"}  # eight bits are for images
    elif precision == "fp8":
        assert "FP8" in inputs <= {"FP8", "FP16"}  # the first and last layers stay
    elif precision == "int8":
        assert "INT8" in inputs <= {"INT8", "FP16"}
    elif precision == "bfloat16":
        assert "BF16" in inputs <= {"BF16", "FP32"}  # Einsum has no bfloat16 form
    else:
        assert inputs == {TYPES[precision]}
    if graph == "proposal":
        assert said.attentions == (0 if precision == "float32" else 6)


def test_several_generations_in_one_plan_cost_little_size(demo):
    one = build(demo, "image_encoder", "float16", "sm89")
    several = build(demo, "image_encoder", "float16", "sm75", "sm80", "sm86", "sm89", "sm120")
    assert len(several.data) < 1.05 * len(one.data)


@pytest.fixture(scope="module")
def published():
    return open_bundle(bundle_for_case(PUBLISHED), verify=False)


@pytest.mark.parametrize("graph", ["proposal", "image_encoder", "text_encoder"])
def test_a_published_configuration_in_fp16(published, tmp_path, graph):
    path = tmp_path / f"{graph}.onnx"
    record = write_half(published.graph_path(graph), path, default_recipe(), graph)
    profiles = default_profiles(published.manifest, graph, record)
    said = build_plan(path, profiles, BuildOptions(), target("float16", "sm89")).explanation
    assert {types.split(" ")[-1] for types in said.products} == {"FP16"}
    # Two in each of the decoder's six layers; one in each of the encoders' twelve blocks.
    assert said.attentions == 12
    assert said.scratch_bytes < {"proposal": 150e6, "image_encoder": 900e6, "text_encoder": 250e6}[graph]


def test_eight_bits_keep_all_attention_fused(published, tmp_path):
    crops = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    source = published.graph_path("image_encoder")
    quantise(source, tmp_path / "image_encoder.onnx", "int8", {"crops": crops})
    path = tmp_path / "half.onnx"
    record = write_half(tmp_path / "image_encoder.onnx", path, default_recipe(), "image_encoder")
    profiles = default_profiles(published.manifest, "image_encoder", record)
    said = build_plan(path, profiles, BuildOptions(), target("int8", "sm89")).explanation
    assert said.attentions == 12
    assert said.products["INT8 -> FP16"] == 50
    assert said.scratch_bytes < 750e6


@pytest.mark.parametrize("export", [export_proposal, export_image, export_text])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_attention_as_one_operation_is_built_too(tmp_path, export, half):
    path, _, record = export(tmp_path, fused=True)
    if half:
        path = tmp_path / "half" / path.name
        path.parent.mkdir()
        record = write_half(tmp_path / path.name, path, default_recipe(), path.stem)
    profile = {
        tensor.name: Range(
            **{
                key: [size if isinstance(size, int) else 64 if tensor.name == "image" else 2 for size in tensor.shape]
                for key in ("min", "opt", "max")
            }
        )
        for tensor in record.inputs
    }
    assert build_plan(path, [profile], BuildOptions(), target("float16", "sm89")).data.startswith(MAGIC)


def test_a_build_that_fails_says_what_the_builder_said(demo):
    record = demo.graph("image_encoder", "float16")
    wrong = default_profiles(demo.manifest, "image_encoder", record)
    narrow = {"crops": Range(min=[1, 3, 32, 32], opt=[1, 3, 32, 32], max=[1, 3, 32, 32])}
    assert wrong[0]["crops"].opt[2] == 64
    with pytest.raises(EngineError, match=r"TensorRT for RTX .* image_encoder.onnx: ") as caught:
        build_plan(demo.path(record.file), [narrow], BuildOptions(), target("float16", "sm89"))
    assert "\n" not in str(caught.value)


def test_progress_reaches_the_end(demo):
    shown = []
    record = demo.graph("text_encoder", "float16")
    profiles = default_profiles(demo.manifest, "text_encoder", record)
    graph, options = demo.path(record.file), BuildOptions(optimization_level=0)
    build_plan(graph, profiles, options, target("float16", "sm89"), None, lambda *step: shown.append(step))
    done = [done for _, done, _ in shown]
    assert done == sorted(done)
    assert done[-1] == shown[-1][2]
