"""Graphs: what they are made of, that they repeat to the byte, and that they compute what their modules compute."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.export.graph.small_graphs import (
    PROPOSAL,
    export_image,
    export_proposal,
    export_text,
    operations,
    taken_in_both_precisions,
)
from tests.export.model.small_models import CROP, small_proposal
from vocabseg.export.graph.onnx_file import ExportError
from vocabseg.export.graph.trace import export_graph
from vocabseg.export.graph_checks import check_graph
from vocabseg.runtime.engines import choose
from vocabseg.runtime.engines.host_engines import open_engine

onnx = pytest.importorskip("onnx", reason="graphs are ONNX")


SIZE_ARITHMETIC = ("Shape", "Size", "Range", "Expand", "ConstantOfShape", "Tile")


def noise(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def ids(batch):
    generator = np.random.default_rng(batch)
    return {"token_ids": generator.integers(0, 49408, (batch, 77)), "eot_index": generator.integers(0, 77, batch)}


@pytest.fixture(scope="module")
def proposal(tmp_path_factory):
    return export_proposal(tmp_path_factory.mktemp("proposal"))


def test_proposal_graph_computes_its_module_at_any_size(proposal):
    path, module, record = proposal
    sizes = [(1, 32, 32), (1, 32, 160), (3, 96, 64)]
    report = check_graph(path, module, [{"image": noise(b, 3, h, w)} for b, h, w in sizes])
    assert {"openvino-cpu-float32", "onnxruntime-cpu-float32"} & report.keys()
    for outputs in report.values():
        assert outputs.keys() == {"mask_logits", "query_embeddings"}
        for figures in outputs.values():
            assert figures["relative"] <= 1e-4
            assert figures["cosine"] >= 0.999999
    shapes = {tensor.name: tuple(tensor.shape) for tensor in record.inputs + record.outputs}
    assert shapes == PROPOSAL
    assert {tensor.dtype for tensor in record.inputs + record.outputs} == {"float32"}


@pytest.mark.parametrize("fused", [False, True])
def test_proposal_graph_calculates_with_no_sizes(proposal, tmp_path, fused):
    """So that ONNX Runtime leaves nothing of it to the CPU: what a reshape needs of the sizes, it copies or infers."""
    path = export_proposal(tmp_path, fused=True)[0] if fused else proposal[0]
    assert not operations(path).keys() & set(SIZE_ARITHMETIC)
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    assert {node.input[1] for node in graph.node if node.op_type == "Reshape"} <= constants


def test_proposal_graph_is_taken_by_tensorrt_in_both_precisions(proposal, tmp_path):
    taken_in_both_precisions(proposal[0], tmp_path / "half.onnx", "10.13.3.9")


def test_proposal_graph_has_one_operation_per_normalisation(proposal):
    path, module, record = proposal
    found = operations(path)
    norms = [type(child).__name__ for child in module.modules()]
    assert found["GroupNormalization"] == norms.count("GroupNorm") == 7
    # Both halves of the decoder: three per layer and a last one.
    assert found["LayerNormalization"] == norms.count("LayerNorm") == 7
    assert found["Resize"] == 3
    for kind in ("BatchNormalization", "InstanceNormalization", "NonZero", "Attention"):
        assert found[kind] == 0, kind
    assert record.opset == 21


@pytest.mark.parametrize("patch", [16, None], ids=["vit", "resnet"])
def test_image_graph(tmp_path, patch):
    path, tower, _ = export_image(tmp_path, patch=patch)
    size = CROP if patch else 64
    check_graph(path, tower, [{"crops": noise(batch, 3, size, size)} for batch in (1, 5)])
    found = operations(path)
    for kind in (*SIZE_ARITHMETIC, "BatchNormalization", "Cast"):
        assert found[kind] == 0, kind
    assert found["Slice"] == (2 if patch else 0)  # the class token, for the query and for the residual
    if patch:
        assert found["LayerNormalization"] == 2 + 2 * 2
        assert found["Softmax"] == 2
        # Patches to tokens; per layer, into heads and back; in the last, one query and its keys and values apart.
        assert found["Reshape"] == 1 + 2 * 2 + 1
        assert found["Transpose"] == 1 + 2 * 3 + 1
    else:
        assert found["Softmax"] == 1
        assert found["Reshape"] <= 5


def test_text_graph(tmp_path):
    path, tower, record = export_text(tmp_path)
    inputs = [ids(1), ids(4), {"token_ids": np.full((2, 77), 49409), "eot_index": np.array([0, 76])}]
    check_graph(path, tower, inputs)
    found = operations(path)
    assert found["LayerNormalization"] == 1 + 2 * 2
    assert found["Reshape"] == 2 * 2
    for kind in (*SIZE_ARITHMETIC, "Slice", "GatherND", "GatherElements", "ArgMax"):
        assert found[kind] == 0, kind
    assert [tensor.dtype for tensor in record.inputs] == ["int64", "int64"]
    assert [tensor.name for tensor in record.inputs] == ["token_ids", "eot_index"]


def test_gelu_is_one_operation(tmp_path):
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    export_graph(module, {"x": torch.randn(2, 8)}, {"x": ("batch", 8), "y": ("batch", 8)}, tmp_path / "gelu.onnx")
    assert operations(tmp_path / "gelu.onnx")["Gelu"] == 1


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (20, 9), (21, 10), (24, 10)])
def test_the_record_says_what_was_written(tmp_path, opset, ir_version):
    path = tmp_path / "graph.onnx"
    sizes = {"x": ("batch", 8), "y": ("batch", 8)}
    record = export_graph(nn.Sequential(nn.Linear(8, 8), nn.GELU()), {"x": torch.randn(2, 8)}, sizes, path, opset)
    model = onnx.load(path)
    assert record.opset == model.opset_import[0].version == opset
    assert model.ir_version == ir_version
    open_engine(path, "onnxruntime", "cpu", "float32").run({"x": np.ones((3, 8), np.float32)})


@pytest.mark.parametrize("opset", [11, 17, 25])
def test_an_opset_that_cannot_be_written_is_refused(tmp_path, opset):
    with pytest.raises(ExportError, match=f"opset {opset} cannot be written: use one of 18 to 24"):
        export_graph(nn.Linear(8, 8), {"x": torch.randn(2, 8)}, {}, tmp_path / "graph.onnx", opset)
    assert not any(tmp_path.iterdir())


def test_fused_attention_is_one_operation_on_four_axes(tmp_path):
    path, tower, record = export_image(tmp_path, fused=True, patch=16)
    assert record.opset == 23
    assert operations(path)["Attention"] == 2
    assert operations(path)["Softmax"] == 0
    check_graph(path, tower, [{"crops": noise(2, 3, CROP, CROP)}])
    path, tower, _ = export_text(tmp_path, fused=True)
    check_graph(path, tower, [ids(2)])
    model = onnx.load(path)
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    masks = [node.input[3] for node in model.graph.node if node.op_type == "Attention"]
    assert [ranks[name] for name in masks] == [4, 4]


def test_fused_attention_in_the_proposal_network(tmp_path):
    module = small_proposal(deep_stem=False)
    path = tmp_path / "proposal.onnx"
    export_graph(module, {"image": torch.randn(2, 3, 64, 96)}, PROPOSAL, path, fused_attention=True)
    assert operations(path)["Attention"] == 2 * module.sizes.layers
    assert operations(path)["Softmax"] == 0
    check_graph(path, module, [{"image": noise(1, 3, 96, 64)}])


def test_the_same_module_gives_the_same_bytes_and_no_local_paths(tmp_path, proposal):
    path, module, record = proposal
    again = export_graph(module, {"image": torch.randn(2, 3, 64, 64)}, PROPOSAL, tmp_path / "proposal.onnx")
    assert again == record
    data = path.read_bytes()
    for trace in (b".py", b"site-packages", b"/home", b"vocabseg"):
        assert trace not in data


def test_large_weights_stand_beside_the_graph_and_small_ones_inside(tmp_path, proposal):
    path, _, record = export_text(tmp_path)
    assert [part.file for part in record.external] == ["text_encoder.onnx.data"]
    assert record.external[0].bytes == (tmp_path / "text_encoder.onnx.data").stat().st_size > 12_000_000
    assert path.stat().st_size < 100_000
    small = nn.Linear(8, 8)
    record = export_graph(
        small, {"x": torch.randn(2, 8)}, {"x": ("batch", 8), "y": ("batch", 8)}, tmp_path / "linear.onnx"
    )
    assert record.external == []
    assert not (tmp_path / "linear.onnx.data").exists()
    assert proposal[2].digest() != record.digest()


def test_an_output_named_like_an_inner_value_is_no_silent_damage(tmp_path):
    class Trap(nn.Module):
        def forward(self, x):
            return torch.relu(x + 1) * 2

    path = tmp_path / "trap.onnx"
    dimensions = {"x": ("batch", 4), "add": ("batch", 4)}
    export_graph(Trap(), {"x": torch.randn(2, 4)}, dimensions, path)
    check_graph(path, Trap(), [{"x": noise(3, 4)}])


def test_antialiasing_is_refused(tmp_path):
    class Smaller(nn.Module):
        def forward(self, x):
            return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)

    with pytest.raises(ExportError, match="antialias"):
        export_graph(
            Smaller(), {"x": torch.randn(2, 3, 8, 8)}, {"x": ("batch", 3, 8, 8), "y": ("batch", 3, 4, 4)},
            tmp_path / "smaller.onnx",
        )  # fmt: skip


def test_a_graph_that_strays_from_its_module_is_an_error(proposal):
    path, module, _ = proposal
    other = copy.deepcopy(module)
    last = other.sem_seg_head.predictor.mask_embed.layers[-1]
    with torch.no_grad():
        last.weight += 0.02 * torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ExportError, match=r"proposal.onnx on \w+: output mask_logits differs from PyTorch: cosine 0\."):
        check_graph(path, other, [{"image": noise(1, 3, 64, 64)}])


def test_without_an_engine_nothing_is_checked_in_silence(proposal, monkeypatch):
    monkeypatch.setattr(choose, "installed", lambda name: False)
    with pytest.raises(ExportError, match=r"vocabseg\[cpu\]"):
        check_graph(proposal[0], proposal[1], [])


def test_operations_that_tensorrt_cannot_parse_are_refused(tmp_path):
    class Determinant(nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    dimensions = {"x": ("batch", 4, 4), "y": ("batch",)}
    with pytest.raises(ExportError, match=r"TensorRT cannot parse .*Det is not on the list"):
        export_graph(Determinant(), {"x": torch.randn(2, 4, 4)}, dimensions, tmp_path / "det.onnx")
