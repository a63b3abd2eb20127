"""Operations counted from graphs: against formulas by hand, PyTorch's own counter, and sizes that a graph computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from tests.bundles import bundle_for_case
from tests.reference_cases import case_model
from vocabseg.benchmarks.speed.flops import graph_work, infer_shapes, load_graph
from vocabseg.export.model.towers import prune_last_block
from vocabseg.runtime.errors import BundleError

CASE = "c_r50_tiny16_vild"


def save(folder: Path, nodes: list, inputs: dict, outputs: list[str], weights: dict[str, np.ndarray]) -> Path:
    """A graph of float32 inputs of the given shapes (names are dynamic sizes)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = folder / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "weights", "size", "expected"),
    [
        # 8 filters of 3 x 3 x 3 at 10 x 8 places: stride 2 with a border of 1.
        (("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), [zeros(8, 3, 3, 3)], (1, 3, 20, 16), 2 * 8 * 27 * 10 * 8),
        # Two groups: each of the 6 filters sees 2 of the 4 channels; two images.
        (("Conv", {"group": 2}), [zeros(6, 2, 1, 1)], (2, 4, 5, 7), 2 * 2 * 6 * 2 * 5 * 7),
        # Every one of 5 x 7 x 4 inputs goes to 2 x 2 x 3 outputs.
        (("ConvTranspose", {"strides": [2, 2]}), [zeros(4, 3, 2, 2)], (1, 4, 5, 7), 2 * 5 * 7 * 4 * 2 * 2 * 3),
        (("MatMul", {}), [zeros(16, 10)], (3, 5, 16), 2 * 3 * 5 * 16 * 10),
        (("Gemm", {"transA": 1, "transB": 1}), [zeros(10, 5), zeros(10)], (5, 7), 2 * 7 * 5 * 10),
        (("Einsum", {"equation": "nqc,chw->nqhw"}), [zeros(6, 4, 5)], (2, 3, 6), 2 * 2 * 3 * 6 * 4 * 5),
        (("Relu", {}), [], (3, 4), 0),
    ],
)  # fmt: skip
def test_nodes_by_hand(tmp_path: Path, node: tuple, weights: list, size: tuple, expected: int) -> None:
    kind, attributes = node
    named = {f"w{index}": array for index, array in enumerate(weights)}
    made = helper.make_node(kind, ["x", *named], ["y"], **attributes)
    path = save(tmp_path, [made], {"x": [f"d{index}" for index in range(len(size))]}, ["y"], named)
    work = graph_work(path, {"x": size})
    assert work.operations == expected
    assert work.weight_bytes == 4 * sum(array.size for array in weights)


def test_a_size_that_the_graph_computes_itself(tmp_path: Path) -> None:
    """Half the height, out of Shape, Gather, Div and Concat, decides how (1, 6, H, W) is cut up for the product."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["height"]),
        helper.make_node("Div", ["height", "halves"], ["half"]),
        helper.make_node("Concat", ["half", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["cut"]),
        helper.make_node("MatMul", ["cut", "w"], ["y"]),
    ]
    constants = {"two": np.array([2]), "halves": np.array([2]), "rest": np.array([-1, 4]), "w": zeros(4, 9)}
    path = save(tmp_path, nodes, {"x": [1, 6, "height", 8]}, ["y"], constants)
    shapes = infer_shapes(load_graph(path), {"x": (1, 6, 20, 8)})
    assert shapes["cut"] == (10, 24, 4)
    assert graph_work(path, {"x": (1, 6, 20, 8)}).operations == 2 * 10 * 24 * 4 * 9


def test_what_cannot_be_counted_is_told(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, ["y"], {"w": zeros(4, 9)})
    with pytest.raises(BundleError, match="does not follow from the inputs' sizes"):
        graph_work(path, {})
    with pytest.raises(BundleError, match="has 2 dimensions, not 3"):
        graph_work(path, {"x": (1, 2, 4)})
    (tmp_path / "broken.onnx").write_bytes(b"\xff\xfe no graph")
    with pytest.raises(BundleError, match="cannot be read"):
        graph_work(tmp_path / "broken.onnx", {})


def test_an_exported_proposal_network_as_pytorch_counts_it() -> None:
    bundle, network = bundle_for_case(CASE), case_model(CASE)[3].proposal
    for size in ((64, 96), (160, 128)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.randn(1, 3, *size))
        counted = graph_work(bundle / "proposal.onnx", {"image": (1, 3, *size)})
        assert counted.operations == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_an_exported_image_encoder_as_the_formulas_of_a_transformer_say() -> None:
    bundle, clip = bundle_for_case(CASE), case_model(CASE)[3].region_clip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prune_last_block(clip.make_image_tower(224))(torch.randn(1, 3, 224, 224))
    graph = load_graph(bundle / "image_encoder.onnx").graph
    layers = sum(node.op_type == "Softmax" for node in graph.node)
    width = next(tensor.dims[0] for tensor in graph.initializer if list(tensor.dims[1:]) == [3, 16, 16])
    tokens = 14 * 14 + 1
    patches = 2 * (tokens - 1) * width * 3 * 16 * 16
    layer = 2 * tokens * width * 12 * width + 2 * 2 * tokens * tokens * width
    last = 2 * (2 * tokens + 10) * width * width + 2 * 2 * tokens * width  # only the class token asks
    for batch in (1, 5):
        counted = graph_work(bundle / "image_encoder.onnx", {"crops": (batch, 3, 224, 224)}).operations
        assert counted == pytest.approx(batch * counter.get_total_flops(), rel=0.05)
        assert counted == pytest.approx(batch * (patches + (layers - 1) * layer + last), rel=0.01)
