"""What a builder's log says of its kernels, and how it is shown."""

import json

import pytest

from tests.doubles.tensorrt import KERNELS
from vocabseg.export.graph.layers import layers
from vocabseg.export.tensorrt.explain import LogReader, read_kernel
from vocabseg.export.tensorrt.explain_report import LAYERS, SUMMARY, ExplainedPlan, draw, write_json
from vocabseg.runtime.bundle.folder import demo_folder, open_bundle
from vocabseg.runtime.bundle.plans import Plan, PlanRecord


@pytest.fixture
def said():
    reader = LogReader()
    for text in ("Engine generation completed", *KERNELS, "Total Activation Memory: 5 bytes"):
        reader(text)
    return reader.explanation()


@pytest.fixture
def explained(said, tmp_path):
    record = PlanRecord(
        graph="image_encoder", precision="int8", graph_digest="", file="image_encoder-int8.plan", bytes=3_600_000,
        sha256="", gpu="", compute_capability=(0, 0), driver="", engine="tensorrt-rtx", generations=[(8, 9)],
        tensorrt="1.7.1.116", version_compatible=False, hardware_compatibility="none", profiles=[], inputs=[],
        outputs=[], flags=[], optimization_level=3, workspace_bytes=None, build_seconds=2.4, vocabseg="", date="",
    )  # fmt: skip
    return ExplainedPlan(Plan(tmp_path / "rtx-sm89", record), said, {"node_Conv_326": "stem.0"})


def test_kernels_are_read_with_what_they_do_their_types_and_nodes(said):
    first, second, third = said.kernels  # the call on the host is none
    assert (first.what, first.types, first.nodes) == ("product", "INT8 -> FP16", ("node_Conv_326", "node_relu"))
    assert (second.what, second.types, second.nodes) == ("fused attention", "FP16", ("node_matmul",))
    assert (third.what, third.profile) == ("reformat", 1)
    assert said.of_profile() == (first, second)
    assert (dict(said.products), said.attentions, said.reformats) == ({"INT8 -> FP16": 1}, 1, 0)
    assert (said.weights_bytes, said.scratch_bytes) == (2720576, 13565952)  # the largest that was said


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("node_Conv_1_myl0_2", "correlation", "product"),
        ("__myl_FcAddRelu_myl0_7", "runtime_fusion", "product"),
        ("node_linear_3_myl0_1", "gemm", "product"),
        ("_gemv_mha_v1_myl0_184", "kgen", "fused attention"),
        ("__myl_ReshTranReshMove_myl0_5", "kgen", "reformat"),
        ("__myl_Cast_myl0_6", "kgen", "reformat"),
        ("__myl_AddReshTranReshMove_myl0_5", "kgen", "other"),
        ("__myl_MulMinMaxRounCast_myl0_1", "kgen", "other"),
        ("node_max_pool2d_myl0_3", "maxpool", "other"),
    ],
)
def test_what_kernels_do(name, kind, what):
    line = f"Name: {name}, LayerType: {kind}, Inputs: [ {{ Datatype: Half }}], Outputs: [ {{ Datatype: Half }}], x"
    assert read_kernel(line).what == what


def test_a_line_of_something_else_is_no_kernel():
    assert read_kernel("Layer: x Host Persistent: 80 bytes") is None


def test_rows_name_the_layers_of_the_model(explained):
    assert dict(zip(SUMMARY, explained.summary(), strict=True)) == {
        "graph": "image_encoder", "MB": "3.6", "kernels": "2", "products": "1 INT8 -> FP16", "fused attention": "1",
        "reformats": "0", "scratch MB": "14", "seconds": "2",
    }  # fmt: skip
    assert [dict(zip(LAYERS, row, strict=True)) for row in explained.rows()] == [
        {"kernel": "product", "types": "INT8 -> FP16", "layer": "stem.0", "operations": "Conv_326, relu"},
        {"kernel": "fused attention", "types": "FP16", "layer": "", "operations": "matmul"},
    ]


def test_the_report_holds_every_kernel_and_a_picture(explained, tmp_path):
    write_json([explained], tmp_path / "plans.json")
    (plan,) = json.loads((tmp_path / "plans.json").read_text())["plans"]
    assert (plan["graph"], plan["products"], plan["fused_attentions"]) == ("image_encoder", {"INT8 -> FP16": 1}, 1)
    assert [(kernel["what"], kernel["layers"]) for kernel in plan["kernels"]] == [
        ("product", "stem.0"),
        ("fused attention", ""),
        ("reformat", ""),
    ]
    draw([explained, explained], tmp_path / "plans.png")
    assert (tmp_path / "plans.png").read_bytes().startswith(b"\x89PNG")


def test_the_layers_of_the_demo_model_are_found_in_its_graphs():
    bundle = open_bundle(demo_folder())
    found = layers(bundle.graph_path("image_encoder"))
    assert found["node_Conv_326"] == "stem.0"
    assert {"stages.3.0.conv3", "key", "value", "out"} <= set(found.values())
    found = layers(bundle.graph_path("proposal"))
    assert "sem_seg_head.predictor.transformer.decoder.layers.0.self_attn.out_proj" in found.values()
    assert not [layer for layer in found.values() if layer.startswith("val_")]
